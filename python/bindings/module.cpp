#include "bindings.h"

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
    bind_nerf(m);
    bind_testbed(m);
    auto stages = m.def_submodule("stages", "Single stages of the CPU kernels, for tests and benchmarks.");
    bind_stages(stages);
    m.def("num_threads", &ngp::num_threads, "Threads in use: PYNGP_NUM_THREADS, or the cores this process may use.");
    m.def("available_isas", &ngp::available_isas, "Instruction sets this build and processor support, best first.");
    m.def("base_nerf_config", &ngp::base_nerf_config_json, "The base configuration of the NeRF task, as JSON text.");
    m.attr("has_cuda") = false;
}
