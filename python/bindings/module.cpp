#include "bindings.h"

#include <ngp/core/device.h>
#include <ngp/core/isa.h>
#include <ngp/core/parallel.h>
#include <pybind11/stl.h>

PYBIND11_MODULE(_core, m) {
    m.doc() = "The ngp library: types and the GIL only; see the pyngp package for the interface.";
    py::register_exception_translator([](std::exception_ptr p) {
        try {
            if (p) std::rethrow_exception(p);
        } catch (const ngp::Error& e) {
            PyErr_SetString(PyExc_RuntimeError, e.what());
        } catch (const std::bad_alloc&) {
            PyErr_SetString(PyExc_MemoryError,
                            "not enough memory; a smaller batch size, picture or network needs less");
        }
    });
    bind_types(m);
    bind_arrays(m);
    bind_images(m);
    bind_nerf(m);
    bind_rendering(m);
    bind_testbed(m);
    auto stages = m.def_submodule("stages", "Single stages, for tests and benchmarks.");
    bind_stages(stages);
    bind_render_stages(stages);
    bind_model(stages);
    m.def("num_threads", &ngp::num_threads, "Threads in use: PYNGP_NUM_THREADS, or the cores this process may use.");
    m.def("available_isas", &ngp::available_isas, "Instruction sets this build and processor support, best first.");
    m.def("base_nerf_config", &ngp::base_nerf_config_json, "The base configuration of the NeRF task, as JSON text.");
    m.attr("built_with_cuda") = ngp::built_with_cuda();
    m.def(
        "cuda_devices",
        [] {
            py::list devices;
            for (const ngp::CudaDevice& d : ngp::cuda_devices()) {
                py::dict device;
                device["index"] = d.index;
                device["name"] = d.name;
                device["compute_capability"] = d.compute_capability;
                device["total_bytes"] = d.total_bytes;
                device["free_bytes"] = d.free_bytes;
                devices.append(device);
            }
            return devices;
        },
        "Usable CUDA devices.");
    m.def("cuda_unavailable_reason", &ngp::cuda_unavailable_reason, "Why cuda_devices() is empty; empty if it is not.");
    // has_cuda: asked for when somebody wants to know, since asking starts the driver, which a process that forks later
    // could then not use in its children.
    m.def(
        "__getattr__",
        [](const std::string& name) {
            if (name != "has_cuda") throw py::attribute_error("module 'pyngp._core' has no attribute '" + name + "'");
            return ngp::built_with_cuda() && ngp::cuda_unavailable_reason().empty();
        },
        py::arg("name"));
}
