#include <algorithm>
#include <cmath>
#include <ngp/core/parallel.h>
#include <ngp/stages/error_map.h>

namespace ngp {

namespace {

constexpr uint32_t first_interval = 128; // steps
constexpr double line_floor = 0.01, image_floor = 0.1;

} // namespace

std::vector<float> image_sharpness(const ImageView& image) {
    const int w = image.width, h = image.height;
    std::vector<float> lumas(size_t(w) * size_t(h)), tiles(size_t(sharpness_width) * sharpness_height);
    for (int y = 0; y < h; ++y)
        for (int x = 0; x < w; ++x) lumas[size_t(y) * w + x] = pixel_luma(image, x, y);
    for (size_t i = 0; i < tiles.size(); ++i)
        tiles[i] = tile_sharpness(int(i), w, h, [&](int x, int y) { return lumas[size_t(y) * w + x]; });
    return tiles;
}

std::vector<std::vector<float>> sharpness_of_images(const std::vector<TrainingView>& views, int n) {
    std::vector<std::vector<float>> result(static_cast<size_t>(n));
    parallel_for(n, [&](int64_t i, int) { result[size_t(i)] = image_sharpness(views[size_t(i)].image); });
    return result;
}

void cumulate(const double* values, int n, double floor, float* cdf) {
    double total = 0;
    for (int i = 0; i < n; ++i) total += values[i];
    double sum = 0;
    for (int i = 0; i < n; ++i) {
        sum += total > 0 ? floor / n + (1 - floor) * values[i] / total : 1.0 / n;
        cdf[i] = float(sum);
    }
    cdf[n - 1] = 1.0f;
}

int error_map_side(double rays, int limit) {
    return std::clamp(int(3.5 * std::sqrt(std::sqrt(std::max(0.0, rays)))), 1, std::max(1, limit));
}

void ErrorMap::reset() {
    state_ = {};
    images_.clear(), rows_.clear(), columns_.clear();
    sharpness_.clear();
    ray_errors_.clear();
    must_cumulate_ = false;
}

bool ErrorMap::changes_at(const ErrorMapOptions& options, int n_images) const {
    if (!options.active()) return options_.active();
    return must_cumulate_ || !(options == options_) || state_.n_images != n_images || state_.steps >= state_.interval;
}

void ErrorMap::begin_step(const ErrorMapOptions& options, const std::vector<TrainingView>& views, int n_images,
                          int n_rays) {
    if (!options.active()) {
        if (options_.active()) reset();
        options_ = options;
        return;
    }
    must_cumulate_ |= options.by_sharpness != options_.by_sharpness;
    options_ = options;
    if (state_.n_images != n_images) {
        reset();
        state_.n_images = n_images;
        state_.interval = first_interval;
        begin_interval(views, n_rays);
    } else if (state_.steps >= state_.interval) {
        state_.drawn = std::move(state_.errors);
        state_.drawn_width = state_.width;
        state_.drawn_height = state_.height;
        state_.interval += state_.interval / 2;
        must_cumulate_ = true;
        begin_interval(views, n_rays);
    }
    if (must_cumulate_) cumulate_maps(views);
    ray_errors_.resize(size_t(n_rays));
}

// An empty map for the errors of the interval's steps.
void ErrorMap::begin_interval(const std::vector<TrainingView>& views, int n_rays) {
    const double rays = double(state_.interval) * n_rays / state_.n_images;
    state_.width = error_map_side(rays, views[0].image.width);
    state_.height = error_map_side(rays, views[0].image.height);
    state_.errors.assign(size_t(state_.n_images) * size_t(state_.width) * size_t(state_.height), 0.0f);
    state_.steps = 0;
}

// Mean sharpness of the tiles under cell (x, y) of the map that is drawn from.
float ErrorMap::cell_sharpness(int image, int x, int y) const {
    const int w = state_.drawn_width, h = state_.drawn_height;
    const int x0 = x * sharpness_width / w, y0 = y * sharpness_height / h;
    const int x1 = std::max(x0 + 1, (x + 1) * sharpness_width / w);
    const int y1 = std::max(y0 + 1, (y + 1) * sharpness_height / h);
    float sum = 0;
    for (int j = y0; j < y1; ++j)
        for (int i = x0; i < x1; ++i) sum += sharpness_[size_t(image)][size_t(j) * sharpness_width + i];
    return sum / float((x1 - x0) * (y1 - y0));
}

void ErrorMap::cumulate_maps(const std::vector<TrainingView>& views) {
    must_cumulate_ = false;
    const State& s = state_;
    const int w = s.drawn_width, h = s.drawn_height;
    if (s.drawn.empty()) return;
    if (options_.by_sharpness && sharpness_.empty()) sharpness_ = find_sharpness_(views, s.n_images);
    images_.resize(size_t(s.n_images));
    rows_.resize(size_t(s.n_images) * size_t(h));
    columns_.resize(rows_.size() * size_t(w));
    std::vector<double> of_images(size_t(s.n_images));
    parallel_for(s.n_images, [&](int64_t image, int) {
        std::vector<double> row(static_cast<size_t>(w)), of_rows(static_cast<size_t>(h));
        for (int y = 0; y < h; ++y) {
            const size_t at = size_t(image) * size_t(h) + size_t(y);
            for (int x = 0; x < w; ++x) {
                row[x] = double(s.drawn[at * size_t(w) + size_t(x)]);
                if (options_.by_sharpness) row[x] *= double(cell_sharpness(int(image), x, y));
                of_rows[y] += row[x];
            }
            cumulate(row.data(), w, line_floor, columns_.data() + at * size_t(w));
            of_images[image] += of_rows[y];
        }
        cumulate(of_rows.data(), h, line_floor, rows_.data() + size_t(image) * size_t(h));
    });
    cumulate(of_images.data(), s.n_images, image_floor, images_.data());
}

ErrorSampling ErrorMap::sampling() const {
    ErrorSampling s;
    if (!options_.active()) return s;
    s.map_width = state_.width;
    s.map_height = state_.height;
    s.width = state_.drawn_width;
    s.height = state_.drawn_height;
    if (state_.drawn.empty()) return s;
    if (options_.by_image) s.images = images_.data();
    if (options_.by_pixel) s.rows = rows_.data(), s.columns = columns_.data();
    return s;
}

void ErrorMap::end_step(int64_t n_rays) {
    if (!options_.active()) return;
    for (int64_t i = 0; i < n_rays; ++i) {
        const RayError& e = ray_errors_[size_t(i)];
        if (std::isfinite(e.error)) state_.errors[e.cell] += e.error;
    }
    ++state_.steps;
}

int64_t ErrorMap::bytes() const {
    size_t n = state_.errors.size() + state_.drawn.size() + images_.size() + rows_.size() + columns_.size();
    for (const auto& s : sharpness_) n += s.size();
    return int64_t(n * 4 + ray_errors_.size() * sizeof(RayError));
}

} // namespace ngp
