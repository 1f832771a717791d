// Arrays on CUDA devices, between libraries: the CUDA array interface, version 3
// (https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html), and DLPack
// (https://dmlc.github.io/dlpack/latest, whose structures are given here).
#include "arrays.h"

#include <pybind11/stl.h>

using namespace ngp;

namespace {

// --- the ABI of DLPack

enum : int32_t { dl_cpu = 1, dl_cuda = 2, dl_cuda_managed = 13 };

struct DLDevice {
    int32_t type, id;
};
struct DLDataType {
    uint8_t code, bits;
    uint16_t lanes;
};
struct DLTensor {
    void* data;
    DLDevice device;
    int32_t ndim;
    DLDataType dtype;
    int64_t* shape;
    int64_t* strides; // in elements; null: C-contiguous
    uint64_t byte_offset;
};
struct DLManagedTensor { // capsule "dltensor"
    DLTensor tensor;
    void* context;
    void (*deleter)(DLManagedTensor*);
};
struct DLManagedTensorVersioned { // capsule "dltensor_versioned"
    struct {
        uint32_t major, minor;
    } version;
    void* context;
    void (*deleter)(DLManagedTensorVersioned*);
    uint64_t flags;
    DLTensor tensor;
};
template <typename Managed>
constexpr const char* capsule_name = "dltensor";
template <>
constexpr const char* capsule_name<DLManagedTensorVersioned> = "dltensor_versioned";
template <typename Managed>
constexpr const char* used_capsule_name = "used_dltensor";
template <>
constexpr const char* used_capsule_name<DLManagedTensorVersioned> = "used_dltensor_versioned";

constexpr uintptr_t legacy_default_stream = 1; // to both protocols, and to the CUDA runtime

std::string dtype_name(DLDataType t) {
    constexpr const char* kinds[] = {"int", "uint", "float", "handle", "bfloat", "complex"};
    const std::string lanes = t.lanes == 1 ? "" : "x" + std::to_string(t.lanes);
    if (t.code == 6) return "bool" + lanes;
    return (t.code < 6 ? kinds[t.code] : "unknown") + std::to_string(t.bits) + lanes;
}

std::string device_name(int index) { return "cuda:" + std::to_string(index); }

bool c_contiguous(const std::vector<py::ssize_t>& shape, const std::vector<int64_t>& strides, int64_t item) {
    int64_t expected = item;
    for (size_t i = shape.size(); i-- > 0;) {
        if (shape[i] == 0) return true;
        if (shape[i] != 1 && strides[i] != expected) return false;
        expected *= shape[i];
    }
    return true;
}

void expect_contiguous(bool contiguous, const std::string& name) {
    if (!contiguous)
        throw py::value_error(name + " must be C-contiguous on a device (no gaps, last axis fastest); pass a copy");
}

[[noreturn]] void fail_on_cpu(const std::string& name, const std::string& where) {
    throw py::value_error(
        name + ": the array lies on " + where +
        ", but this Testbed runs on the CPU, which takes arrays in host memory: NumPy's and the like");
}

void expect_device(const Testbed& t, int device, const std::string& name) {
    if (t.device_index() == host_memory) fail_on_cpu(name, device_name(device));
    if (device != t.device_index())
        throw py::value_error(name + ": the array lies on " + device_name(device) + ", but this Testbed runs on " +
                              t.device() + "; copy it there, or to host memory");
}

template <typename Managed>
DeviceInput input_of(const py::object& capsule, const std::string& name) {
    auto* managed = static_cast<Managed*>(PyCapsule_GetPointer(capsule.ptr(), capsule_name<Managed>));
    if (!managed) throw py::error_already_set();
    if (PyCapsule_SetName(capsule.ptr(), used_capsule_name<Managed>) != 0) throw py::error_already_set();
    DeviceInput in;
    in.owner = std::shared_ptr<const void>(managed, [managed](const void*) {
        if (managed->deleter) managed->deleter(managed);
    });
    if constexpr (std::is_same_v<Managed, DLManagedTensorVersioned>)
        if (managed->version.major != 1)
            throw py::value_error(name + " comes in version " + std::to_string(managed->version.major) +
                                  " of DLPack; version 1 is understood");
    const DLTensor& t = managed->tensor;
    in.data = static_cast<const char*>(t.data) + t.byte_offset;
    in.shape.assign(t.shape, t.shape + t.ndim);
    in.dtype = dtype_name(t.dtype);
    if (t.strides)
        expect_contiguous(c_contiguous(in.shape, std::vector<int64_t>(t.strides, t.strides + t.ndim), 1), name);
    in.stream = legacy_default_stream;
    return in;
}

std::pair<int, int> dlpack_device(py::handle array) {
    const auto device = py::tuple(array.attr("__dlpack_device__")());
    return {py::int_(device[0]).cast<int>(), py::int_(device[1]).cast<int>()};
}

DeviceInput dlpack_input(const Testbed& t, py::handle array, const std::string& name) {
    const auto [type, id] = dlpack_device(array);
    expect_device(t, type == dl_cuda_managed && t.device_index() != host_memory ? t.device_index() : id, name);
    // The producer makes the default stream wait for what writes the array, and our stream will wait for that.
    const py::object capsule = array.attr("__dlpack__")(py::arg("stream") = legacy_default_stream);
    if (PyCapsule_IsValid(capsule.ptr(), capsule_name<DLManagedTensorVersioned>))
        return input_of<DLManagedTensorVersioned>(capsule, name);
    return input_of<DLManagedTensor>(capsule, name);
}

DeviceInput interface_input(const Testbed& t, py::handle array, const std::string& name) {
    if (t.device_index() == host_memory) fail_on_cpu(name, "a CUDA device");
    const py::dict interface = array.attr("__cuda_array_interface__");
    const auto item = [&](const char* key) -> py::object {
        return interface.contains(key) ? py::object(interface[key]) : py::none();
    };
    DeviceInput in;
    in.shape = item("shape").cast<std::vector<py::ssize_t>>();
    const auto typestr = item("typestr").cast<std::string>();
    if (typestr.starts_with(">")) throw py::value_error(name + " must be little-endian on a device");
    const py::dtype dtype(typestr);
    in.dtype = py::str(dtype.attr("name"));
    if (!item("mask").is_none()) throw py::value_error(name + " must not have a mask");
    if (const py::object strides = item("strides"); !strides.is_none())
        expect_contiguous(c_contiguous(in.shape, strides.cast<std::vector<int64_t>>(), dtype.itemsize()), name);
    in.data = reinterpret_cast<const void*>(py::tuple(item("data"))[0].cast<uintptr_t>());
    int64_t n = 1;
    for (const py::ssize_t extent : in.shape) n *= extent;
    if (n > 0) {
        const int device = cuda_device_of_pointer(in.data, t.device_index());
        if (device == host_memory)
            throw py::value_error(name + ": what its __cuda_array_interface__ points to is no memory of a CUDA device");
        expect_device(t, device, name);
    }
    // Before version 3, producers said nothing of streams: what they had put into the default one counts.
    const py::object stream = item("stream"), version = item("version");
    const bool names_streams = !version.is_none() && version.cast<int>() >= 3;
    in.stream = stream.is_none() ? 0 : stream.cast<uintptr_t>();
    if (!names_streams && stream.is_none()) in.stream = legacy_default_stream;
    in.owner = std::shared_ptr<const void>(new py::object(py::reinterpret_borrow<py::object>(array)),
                                           [](const void* p) { delete static_cast<const py::object*>(p); });
    return in;
}

// --- DeviceArray

py::dtype dtype_of(const DeviceArray& a) { return a.is_bytes ? py::dtype::of<uint8_t>() : py::dtype::of<float>(); }

void add_users(const DeviceArray& a, SharedMemory::Users users) { a.memory->add_users(users); }

py::dict cuda_array_interface(const DeviceArray& a) {
    add_users(a, SharedMemory::Users::Anyone); // nobody says in which stream
    py::dict d;
    d["shape"] = py::tuple(py::cast(a.shape));
    d["typestr"] = a.is_bytes ? "|u1" : "<f4";
    d["data"] = py::make_tuple(a.n_bytes() > 0 ? reinterpret_cast<uintptr_t>(a.data) : 0, false);
    d["strides"] = py::none();
    d["stream"] = py::none(); // the values are there
    d["version"] = 3;
    return d;
}

// What an exported tensor needs while it lives.
template <typename Managed>
struct Export {
    Managed managed;
    std::shared_ptr<SharedMemory> memory;
    std::vector<int64_t> shape, strides;
};

template <typename Managed>
py::object to_dlpack(const DeviceArray& a) {
    auto* e = new Export<Managed>{{}, a.memory, {a.shape.begin(), a.shape.end()}, {}};
    e->strides.resize(e->shape.size());
    int64_t stride = 1;
    for (size_t i = e->shape.size(); i-- > 0; stride *= e->shape[i]) e->strides[i] = stride;
    DLTensor& t = e->managed.tensor;
    t.data = a.data;
    t.device = {dl_cuda, a.memory->device()};
    t.ndim = int32_t(e->shape.size());
    t.dtype = {uint8_t(a.is_bytes ? 1 : 2), uint8_t(a.is_bytes ? 8 : 32), 1};
    t.shape = e->shape.data();
    t.strides = e->strides.data();
    if constexpr (std::is_same_v<Managed, DLManagedTensorVersioned>) e->managed.version = {1, 0};
    e->managed.context = e;
    e->managed.deleter = [](Managed* m) { delete static_cast<Export<Managed>*>(m->context); };
    // Who takes the tensor renames the capsule, and calls the deleter later.
    PyObject* capsule = PyCapsule_New(&e->managed, capsule_name<Managed>, [](PyObject* self) {
        if (!PyCapsule_IsValid(self, capsule_name<Managed>)) return;
        auto* m = static_cast<Managed*>(PyCapsule_GetPointer(self, capsule_name<Managed>));
        m->deleter(m);
    });
    if (!capsule) {
        delete e;
        throw py::error_already_set();
    }
    return py::reinterpret_steal<py::object>(capsule);
}

py::object dlpack(const DeviceArray& a, const std::optional<int64_t>& stream,
                  const std::optional<std::pair<int, int>>& max_version,
                  const std::optional<std::pair<int, int>>& dl_device, const std::optional<bool>& copy) {
    if (dl_device && *dl_device != std::pair<int, int>{dl_cuda, a.memory->device()})
        throw py::buffer_error("a DeviceArray is exported on its own device only; use numpy() for the host");
    if (copy.value_or(false)) throw py::buffer_error("a DeviceArray is exported without a copy only");
    // The values are there, so that no stream has to wait. Memory that another stream than the default one reads can't
    // be reused without waiting for the whole device.
    const bool default_stream = !stream || *stream == int64_t(legacy_default_stream);
    add_users(a, default_stream ? SharedMemory::Users::DefaultStream : SharedMemory::Users::Anyone);
    return max_version && max_version->first >= 1 ? to_dlpack<DLManagedTensorVersioned>(a)
                                                  : to_dlpack<DLManagedTensor>(a);
}

template <typename T>
py::array numpy_of(const std::shared_ptr<SharedMemory>& memory, const std::vector<py::ssize_t>& shape) {
    // Whatever NumPy arrays are handed to may copy from them in the default stream, without saying so.
    memory->add_users(SharedMemory::Users::DefaultStream);
    const py::capsule owner(new std::shared_ptr<SharedMemory>(memory),
                            [](void* p) { delete static_cast<std::shared_ptr<SharedMemory>*>(p); });
    return py::array_t<T>(shape, static_cast<const T*>(memory->data()), owner);
}

py::array numpy_copy(const DeviceArray& a) {
    std::shared_ptr<SharedMemory> copy;
    {
        py::gil_scoped_release release;
        copy = copy_to_host(a.data, a.n_bytes(), a.memory->device());
    }
    return a.is_bytes ? numpy_of<uint8_t>(copy, a.shape) : numpy_of<float>(copy, a.shape);
}

py::array as_array(const DeviceArray& a, const py::object& dtype, const py::object& copy) {
    if (!copy.is_none() && !copy.cast<bool>())
        throw py::value_error("a DeviceArray can't become a NumPy array without a copy");
    const py::array array = numpy_copy(a);
    return dtype.is_none() ? array : py::array(array.attr("astype")(dtype, py::arg("copy") = false));
}

py::ssize_t first_extent(const DeviceArray& a) {
    if (a.shape.empty()) throw py::type_error("a DeviceArray without axes has no length");
    return a.shape[0];
}

DeviceArray element(const DeviceArray& a, py::ssize_t i) {
    const py::ssize_t n = first_extent(a), at = i < 0 ? i + n : i;
    if (at < 0 || at >= n) throw py::index_error("index " + std::to_string(i) + " of " + std::to_string(n));
    DeviceArray e = a;
    e.shape.erase(e.shape.begin());
    e.data += at * e.n_bytes();
    return e;
}

std::string repr(const DeviceArray& a) {
    return "DeviceArray(shape=" + std::string(py::str(py::tuple(py::cast(a.shape)))) +
           ", dtype=" + (a.is_bytes ? "uint8" : "float32") + ", device='" + device_name(a.memory->device()) + "')";
}

} // namespace

int64_t DeviceArray::n_bytes() const {
    int64_t n = is_bytes ? 1 : 4;
    for (const py::ssize_t extent : shape) n *= extent;
    return n;
}

bool is_on_device(py::handle array) {
    if (py::isinstance<py::array>(array)) return false;
    if (py::isinstance<DeviceArray>(array)) return true;
    if (py::isinstance<py::type>(array)) return false;
    if (py::hasattr(array, "__dlpack_device__")) {
        const int type = dlpack_device(array).first;
        return type == dl_cuda || type == dl_cuda_managed;
    }
    return py::hasattr(array, "__cuda_array_interface__");
}

DeviceInput device_input(const Testbed& t, py::handle array, const std::string& name) {
    if (py::isinstance<DeviceArray>(array)) {
        const auto& a = array.cast<const DeviceArray&>();
        expect_device(t, a.memory->device(), name);
        // Complete, but for what others did to it since.
        const bool exported = a.memory->users() != SharedMemory::Users::None;
        return {a.data, a.shape, a.is_bytes ? "uint8" : "float32", exported ? legacy_default_stream : 0, a.memory};
    }
    return py::hasattr(array, "__dlpack_device__") ? dlpack_input(t, array, name) : interface_input(t, array, name);
}

FloatArray host_floats(py::handle array, const std::string& name) {
    const py::module_ np = py::module_::import("numpy");
    py::object source = py::reinterpret_borrow<py::object>(array);
    const bool known = py::isinstance<py::array>(array) || py::hasattr(array, "__array__") ||
                       py::hasattr(array, "__array_interface__") || PyObject_CheckBuffer(array.ptr());
    if (!known && py::hasattr(array, "__dlpack__")) source = np.attr("from_dlpack")(array);
    const py::object floats = np.attr("asarray")(source, py::dtype::of<float>(), py::arg("order") = "C");
    FloatArray result = FloatArray::ensure(floats);
    if (!result) throw py::type_error(name + " must be an array of numbers");
    return result;
}

py::object to_python(const DeviceArray& a) {
    if (a.memory->device() != host_memory) return py::cast(a);
    return a.is_bytes ? numpy_of<uint8_t>(a.memory, a.shape) : numpy_of<float>(a.memory, a.shape);
}
py::object to_python(const SharedArray& values, std::vector<py::ssize_t> shape) {
    return to_python(DeviceArray{values.memory(), reinterpret_cast<char*>(values.data()), std::move(shape), false});
}

void bind_arrays(py::module_& m) {
    py::class_<DeviceArray>(
        m, "DeviceArray",
        "An array on a CUDA device, C-contiguous, float32 or uint8; complete when it is handed out. It owns its "
        "memory, "
        "also after the Testbed is gone. Other libraries take it without a copy: torch.from_dlpack(a), "
        "cupy.asarray(a), "
        "jax.dlpack.from_dlpack(a). NumPy gets a copy: a.numpy() or numpy.asarray(a), after the work in CUDA's default "
        "stream. a[i] is a part of it along the first axis, in the same memory.")
        .def_property_readonly("shape", [](const DeviceArray& a) { return py::tuple(py::cast(a.shape)); })
        .def_property_readonly("dtype", dtype_of)
        .def_property_readonly("ndim", [](const DeviceArray& a) { return a.shape.size(); })
        .def_property_readonly("size", [](const DeviceArray& a) { return a.n_bytes() / (a.is_bytes ? 1 : 4); })
        .def_property_readonly("nbytes", &DeviceArray::n_bytes)
        .def_property_readonly(
            "device", [](const DeviceArray& a) { return device_name(a.memory->device()); }, "\"cuda:0\".")
        .def("numpy", numpy_copy, "A copy in host memory.")
        .def("__array__", as_array, py::arg("dtype") = py::none(), py::arg("copy") = py::none())
        .def_property_readonly("__cuda_array_interface__", cuda_array_interface)
        .def("__dlpack__", dlpack, py::kw_only(), py::arg("stream") = py::none(), py::arg("max_version") = py::none(),
             py::arg("dl_device") = py::none(), py::arg("copy") = py::none())
        .def("__dlpack_device__", [](const DeviceArray& a) { return py::make_tuple(int(dl_cuda), a.memory->device()); })
        .def("__len__", first_extent)
        .def("__getitem__", element, py::arg("index"))
        .def("__repr__", repr);
    m.def("is_device_array", is_on_device, py::arg("array"),
          "Whether an object offers its values on a CUDA device, by DLPack or __cuda_array_interface__.");
}
