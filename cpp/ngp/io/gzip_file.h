// Whole-file reading and atomic writing, with gzip.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ngp {

// Contents of a file; gzip and zlib streams are inflated, anything else is returned as it is. Raises ngp::Error.
std::vector<uint8_t> read_maybe_compressed(const std::string& path);

// Writes data as a gzip stream (level 0: stored blocks) or, with level < 0, as it is: to a temporary file in the same
// folder, flushed to disk, then renamed over `path`. Raises ngp::Error and leaves no temporary file behind.
void write_atomically(const std::string& path, const std::vector<uint8_t>& data, int level);

// CRC-32 of the bytes.
uint32_t checksum(const void* data, size_t size);

} // namespace ngp
