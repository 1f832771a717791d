#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <ngp/core/check.h>
#include <ngp/io/gzip_file.h>
#include <unistd.h>
#include <zlib.h>

namespace ngp {

namespace {

constexpr size_t largest_inflated = size_t(16) << 30;

struct CloseFile {
    void operator()(FILE* f) const { std::fclose(f); }
};
using File = std::unique_ptr<FILE, CloseFile>;

std::vector<uint8_t> read_file(const std::string& path) {
    File f(std::fopen(path.c_str(), "rb"));
    if (!f) fail(path, ": cannot be opened: ", std::strerror(errno));
    std::vector<uint8_t> data;
    std::vector<uint8_t> block(1 << 20);
    while (size_t n = std::fread(block.data(), 1, block.size(), f.get()))
        data.insert(data.end(), block.begin(), block.begin() + n);
    if (std::ferror(f.get())) fail(path, ": cannot be read: ", std::strerror(errno));
    return data;
}

std::vector<uint8_t> inflate_all(const std::string& path, const std::vector<uint8_t>& data) {
    z_stream z{};
    if (inflateInit2(&z, 15 + 32) != Z_OK) fail(path, ": zlib could not be started");
    std::unique_ptr<z_stream, int (*)(z_stream*)> guard(&z, inflateEnd);
    std::vector<uint8_t> out;
    std::vector<uint8_t> block(1 << 20);
    size_t consumed = 0;
    int status = Z_OK;
    while (status != Z_STREAM_END) {
        if (z.avail_in == 0) {
            const size_t n = std::min<size_t>(data.size() - consumed, 1u << 30);
            if (n == 0) fail(path, ": the compressed stream ends early; the file is truncated");
            z.next_in = const_cast<Bytef*>(data.data() + consumed);
            z.avail_in = uInt(n);
            consumed += n;
        }
        z.next_out = block.data();
        z.avail_out = uInt(block.size());
        status = inflate(&z, Z_NO_FLUSH);
        if (status != Z_OK && status != Z_STREAM_END && status != Z_BUF_ERROR)
            fail(path, ": the compressed stream is damaged (", z.msg ? z.msg : "zlib error", ")");
        out.insert(out.end(), block.begin(), block.end() - z.avail_out);
        if (out.size() > largest_inflated) fail(path, ": inflates to more than 16 GiB; this is not a snapshot");
    }
    return out;
}

} // namespace

std::vector<uint8_t> read_maybe_compressed(const std::string& path) {
    std::vector<uint8_t> data = read_file(path);
    const bool gzip = data.size() > 2 && data[0] == 0x1f && data[1] == 0x8b;
    // zlib: method 8 and a header that is a multiple of 31. MessagePack maps start with 0x80..0x8f or 0xde, 0xdf.
    const bool zlib = data.size() > 2 && (data[0] & 0x0f) == 8 && data[0] < 0x80 && (data[0] * 256 + data[1]) % 31 == 0;
    return gzip || zlib ? inflate_all(path, data) : data;
}

void write_atomically(const std::string& path, const std::vector<uint8_t>& data, int level) {
    const std::string temporary = path + ".tmp" + std::to_string(getpid());
    auto give_up = [&](const char* what) {
        const int error = errno;
        std::remove(temporary.c_str());
        fail(path, ": ", what, ": ", std::strerror(error));
    };
    File f(std::fopen(temporary.c_str(), "wb"));
    if (!f) fail(path, ": cannot be created: ", std::strerror(errno));
    if (level < 0) {
        if (std::fwrite(data.data(), 1, data.size(), f.get()) != data.size()) give_up("cannot be written");
    } else {
        z_stream z{};
        if (deflateInit2(&z, level, Z_DEFLATED, 15 + 16, 9, Z_DEFAULT_STRATEGY) != Z_OK)
            give_up("zlib could not be started");
        std::unique_ptr<z_stream, int (*)(z_stream*)> guard(&z, deflateEnd);
        std::vector<uint8_t> block(1 << 20);
        size_t consumed = 0;
        int status = Z_OK;
        while (status != Z_STREAM_END) {
            if (z.avail_in == 0 && consumed < data.size()) {
                const size_t n = std::min<size_t>(data.size() - consumed, 1u << 30);
                z.next_in = const_cast<Bytef*>(data.data() + consumed);
                z.avail_in = uInt(n);
                consumed += n;
            }
            z.next_out = block.data();
            z.avail_out = uInt(block.size());
            status = deflate(&z, consumed == data.size() ? Z_FINISH : Z_NO_FLUSH);
            const size_t n = block.size() - z.avail_out;
            if (std::fwrite(block.data(), 1, n, f.get()) != n) give_up("cannot be written");
        }
    }
    if (std::fflush(f.get()) != 0 || fsync(fileno(f.get())) != 0) give_up("cannot be flushed to disk");
    f.reset();
    if (std::rename(temporary.c_str(), path.c_str()) != 0) give_up("cannot be replaced");
}

uint32_t checksum(const void* data, size_t size) {
    uLong crc = crc32(0, nullptr, 0);
    const auto* bytes = static_cast<const Bytef*>(data);
    while (size > 0) {
        const uInt n = uInt(std::min<size_t>(size, 1u << 30));
        crc = crc32(crc, bytes, n);
        bytes += n;
        size -= n;
    }
    return uint32_t(crc);
}

} // namespace ngp
