// JSON and MessagePack documents with errors that say where: parsing, and a node that knows its path. Internal: only
// json_documents.cpp includes this, because nlohmann's header is heavy.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <ngp/core/check.h>
#include <ngp/formulas/aabb.h>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace ngp {
namespace {

using Json = nlohmann::json;

// Builds a document from parser events, refusing depths at which the recursive parts of parsing and of this file would
// run out of stack.
class DocumentBuilder final : public nlohmann::json_sax<Json> {
  public:
    static constexpr size_t max_depth = 64;
    Json root;
    std::string error;

    bool null() override { return add(nullptr); }
    bool boolean(bool v) override { return add(v); }
    bool number_integer(number_integer_t v) override { return add(v); }
    bool number_unsigned(number_unsigned_t v) override { return add(v); }
    bool number_float(number_float_t v, const string_t&) override { return add(v); }
    bool string(string_t& v) override { return add(std::move(v)); }
    bool binary(binary_t& v) override { return add(std::move(v)); }
    bool start_object(size_t) override { return open(Json::object()); }
    bool start_array(size_t) override { return open(Json::array()); }
    bool end_object() override { return close(); }
    bool end_array() override { return close(); }
    bool key(string_t& v) override {
        key_ = std::move(v);
        return true;
    }
    bool parse_error(size_t, const std::string&, const nlohmann::detail::exception& e) override {
        error = e.what();
        return false;
    }

  private:
    bool add(Json v) {
        place(std::move(v));
        return true;
    }
    Json* place(Json v) {
        if (open_.empty()) return &(root = std::move(v));
        Json& parent = *open_.back();
        if (parent.is_array()) return &parent.emplace_back(std::move(v));
        return &(parent[key_] = std::move(v));
    }
    bool open(Json v) {
        if (open_.size() >= max_depth) {
            error = "nested more than " + std::to_string(max_depth) + " levels deep";
            return false;
        }
        open_.push_back(place(std::move(v)));
        return true;
    }
    bool close() {
        open_.pop_back();
        return true;
    }

    std::vector<Json*> open_; // stay valid: a container is only added to while it is the last one
    std::string key_;
};

template <typename Bytes>
Json parse_document(const Bytes& bytes, Json::input_format_t format, const std::string& source, const char* kind) {
    DocumentBuilder builder;
    if (!Json::sax_parse(bytes, &builder, format, true, true)) fail(source, ": is not ", kind, ": ", builder.error);
    return std::move(builder.root);
}

// A document node that knows where it is, so that errors can say so.
class Node {
  public:
    Node(const Json& json, std::string where) : json_(&json), where_(std::move(where)) {}

    const std::string& where() const { return where_; }
    const Json& json() const { return *json_; }
    bool has(const char* key) const {
        if (!json_->is_object()) fail(where_, ": must be an object");
        return json_->contains(key) && !(*json_)[key].is_null();
    }
    Node at(const char* key) const {
        if (!has(key)) fail(where_, ": the key '", key, "' is missing");
        return {(*json_)[key], where_ + "." + key};
    }
    Node at(size_t i) const { return {(*json_)[i], where_ + "[" + std::to_string(i) + "]"}; }
    size_t size() const {
        if (!json_->is_array()) fail(where_, ": must be an array");
        return json_->size();
    }
    void expect_size(size_t n) const {
        if (size() != n) fail(where_, ": must have ", n, " elements, not ", size());
    }

    float number() const {
        if (!json_->is_number()) fail(where_, ": must be a number");
        return json_->get<float>();
    }
    int64_t integer(int64_t lowest, int64_t highest) const {
        if (!json_->is_number()) fail(where_, ": must be a number");
        const double v = json_->get<double>();
        if (!(v >= double(lowest) && v <= double(highest)) || v != std::floor(v))
            fail(where_, ": is ", v, "; it must be a whole number from ", lowest, " to ", highest);
        return int64_t(v);
    }
    bool boolean() const {
        if (!json_->is_boolean()) fail(where_, ": must be true or false");
        return json_->get<bool>();
    }
    std::string text() const {
        if (!json_->is_string()) fail(where_, ": must be a string");
        return json_->get<std::string>();
    }
    // In JSON text, binary data is an object {"bytes": [...], "subtype": null} (specification D.1).
    std::vector<uint8_t> binary() const {
        if (json_->is_binary()) return json_->get_binary();
        if (!json_->is_object() || !json_->contains("bytes")) fail(where_, ": must be binary data");
        const Node bytes = at("bytes");
        std::vector<uint8_t> values(bytes.size());
        for (size_t i = 0; i < values.size(); ++i) values[i] = uint8_t(bytes.at(i).integer(0, 255));
        return values;
    }
    Vec3 vec3() const {
        expect_size(3);
        return {at(size_t(0)).number(), at(1).number(), at(2).number()};
    }
    Vec2 vec2() const {
        expect_size(2);
        return {at(size_t(0)).number(), at(1).number()};
    }
    CameraMatrix camera_matrix() const {
        expect_size(3);
        float m[3][4];
        for (size_t r = 0; r < 3; ++r) {
            at(r).expect_size(4);
            for (size_t c = 0; c < 4; ++c) m[r][c] = at(r).at(c).number();
        }
        return {{m[0][0], m[1][0], m[2][0]},
                {m[0][1], m[1][1], m[2][1]},
                {m[0][2], m[1][2], m[2][2]},
                {m[0][3], m[1][3], m[2][3]}};
    }
    Mat3 mat3() const {
        expect_size(3);
        Mat3 m;
        for (size_t r = 0; r < 3; ++r) {
            at(r).expect_size(3);
            for (size_t c = 0; c < 3; ++c) m.c[c][int(r)] = at(r).at(c).number();
        }
        return m;
    }
    // An unset box has infinite corners, which JSON text writes as null.
    Aabb box() const {
        for (const char* corner : {"min", "max"}) {
            const Json& values = at(corner).json();
            if (values.is_array() && !values.empty() && values[0].is_null()) return {};
        }
        return {at("min").vec3(), at("max").vec3()};
    }

    // Optional values.
    float number(const char* key, float otherwise) const { return has(key) ? at(key).number() : otherwise; }
    int integer(const char* key, int otherwise, int64_t lowest, int64_t highest) const {
        return has(key) ? int(at(key).integer(lowest, highest)) : otherwise;
    }
    bool boolean(const char* key, bool otherwise) const { return has(key) ? at(key).boolean() : otherwise; }
    std::string text(const char* key, const std::string& otherwise) const {
        return has(key) ? at(key).text() : otherwise;
    }

  private:
    const Json* json_;
    std::string where_;
};

std::string lower(std::string s) {
    std::transform(s.begin(), s.end(), s.begin(), [](unsigned char c) { return char(std::tolower(c)); });
    return s;
}

template <typename T>
T choose(const Node& parent, const char* key, const char* otherwise,
         std::initializer_list<std::pair<const char*, T>> choices) {
    const std::string given = parent.text(key, otherwise);
    std::string names;
    for (const auto& [name, value] : choices) {
        if (lower(given) == lower(name)) return value;
        names += std::string(names.empty() ? "" : ", ") + name;
    }
    fail(parent.where(), ".", key, ": '", given, "' is not supported; this version knows ", names);
}

Json parse_text(const std::string& text, const std::string& source) {
    return parse_document(text, Json::input_format_t::json, source, "valid JSON");
}

} // namespace
} // namespace ngp
