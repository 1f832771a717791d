// Arrays on CUDA devices: those of other libraries as arguments, ours as results.
#pragma once

#include "bindings.h"

#include <memory>
#include <string>

// An array on a device (or, on its way to NumPy, of the host), C-contiguous, float32 or uint8. Shares its memory with
// the arrays that were made from it.
struct DeviceArray {
    std::shared_ptr<ngp::SharedMemory> memory;
    char* data = nullptr; // in `memory`
    std::vector<py::ssize_t> shape;
    bool is_bytes = false; // uint8

    int64_t n_bytes() const;
};

// An argument that lies on the Testbed's device, C-contiguous. Once a Testbed waits for `stream`, its values are there.
struct DeviceInput {
    const void* data = nullptr;
    std::vector<py::ssize_t> shape;
    std::string dtype;                 // as NumPy names it
    uintptr_t stream = 0;              // 0: nothing to wait for
    std::shared_ptr<const void> owner; // to be released with the GIL held
};

// Whether an object offers its values on a CUDA device: by DLPack (__dlpack_device__), else by
// __cuda_array_interface__.
bool is_on_device(py::handle array);
// Raises ValueError, with `name`, if it lies on another device than the Testbed or is not C-contiguous.
DeviceInput device_input(const ngp::Testbed& testbed, py::handle array, const std::string& name);
// float32, C-contiguous, from anything array-like in host memory.
FloatArray host_floats(py::handle array, const std::string& name);

// As a NumPy array or a DeviceArray, wherever it lies; without a copy.
py::object to_python(const DeviceArray& values);
py::object to_python(const ngp::SharedArray& values, std::vector<py::ssize_t> shape);
