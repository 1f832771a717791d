// CUDA devices that can run this build. Nothing here makes a context on a device: listing eight of them would take
// seconds and a gigabyte or two of their memory.
#include <algorithm>
#include <cstdlib>
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <ngp/core/device.h>
#include <sstream>
#include <string_view>

namespace ngp {

namespace {

// One of the architectures that this build holds code for, as CMake writes them: 80 (machine code and PTX), 80-real,
// 80-virtual, 90a-real.
bool code_runs_on(std::string_view architecture, int compute_capability) {
    const int built_for = std::atoi(std::string(architecture).c_str());
    const size_t digits = architecture.find_first_not_of("0123456789");
    const std::string_view suffix = digits == std::string_view::npos ? "" : architecture.substr(digits);
    if (suffix.starts_with("a")) return compute_capability == built_for; // features of that chip alone
    const bool same_generation = compute_capability / 10 == built_for / 10;
    if (suffix.starts_with("f")) return same_generation && compute_capability >= built_for;
    const bool machine_code = !suffix.ends_with("-virtual"), ptx = !suffix.ends_with("-real");
    return compute_capability >= built_for && (ptx || (machine_code && same_generation));
}

bool build_runs_on(int compute_capability) {
    std::istringstream architectures(NGP_CUDA_ARCHITECTURES);
    bool any = false;
    for (std::string a; std::getline(architectures, a, ',');) {
        if (code_runs_on(a, compute_capability)) return true;
        any = true;
    }
    return !any; // not known: let the driver decide
}

int compute_capability(int device) {
    int major = 0, minor = 0;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    return 10 * major + minor;
}

bool prohibited(int device) {
    int mode = cudaComputeModeDefault;
    cudaDeviceGetAttribute(&mode, cudaDevAttrComputeMode, device);
    return mode == cudaComputeModeProhibited;
}

// The driver's management library, which knows free memory without a context. Its header is no part of every toolkit.
class Management {
  public:
    Management() {
        library_ = dlopen("libnvidia-ml.so.1", RTLD_LAZY | RTLD_LOCAL);
        if (!library_) return;
        const auto init = symbol<int (*)()>("nvmlInit_v2");
        shutdown_ = symbol<int (*)()>("nvmlShutdown");
        by_uuid_ = symbol<int (*)(const char*, void**)>("nvmlDeviceGetHandleByUUID");
        memory_ = symbol<int (*)(void*, Memory*)>("nvmlDeviceGetMemoryInfo");
        ready_ = init && shutdown_ && by_uuid_ && memory_ && init() == 0;
    }
    ~Management() {
        if (ready_) shutdown_();
        if (library_) dlclose(library_);
    }
    Management(const Management&) = delete;

    // 0: not known
    int64_t free_bytes(const cudaUUID_t& uuid) const {
        if (!ready_) return 0;
        char text[37], *at = text;
        for (int i = 0; i < 16; ++i) {
            constexpr char hex[] = "0123456789abcdef";
            const auto byte = static_cast<unsigned char>(uuid.bytes[i]);
            if (i == 4 || i == 6 || i == 8 || i == 10) *at++ = '-';
            *at++ = hex[byte >> 4], *at++ = hex[byte & 15];
        }
        *at = 0;
        for (const char* kind : {"GPU-", "MIG-"}) {
            void* device = nullptr;
            Memory m;
            if (by_uuid_((std::string(kind) + text).c_str(), &device) == 0 && memory_(device, &m) == 0)
                return int64_t(m.free);
        }
        return 0;
    }

  private:
    struct Memory {
        unsigned long long total = 0, free = 0, used = 0;
    };
    template <typename Function>
    Function symbol(const char* name) const {
        return reinterpret_cast<Function>(dlsym(library_, name));
    }

    void* library_ = nullptr;
    int (*shutdown_)() = nullptr;
    int (*by_uuid_)(const char*, void**) = nullptr;
    int (*memory_)(void*, Memory*) = nullptr;
    bool ready_ = false;
};

// Devices that the driver shows; `status` says why there are none.
int visible_devices(cudaError_t& status) {
    int n = 0;
    status = cudaGetDeviceCount(&n);
    if (status == cudaSuccess) return n;
    cudaGetLastError(); // must not meet the next caller
    return 0;
}

std::string version(int v) { return std::to_string(v / 1000) + "." + std::to_string(v % 1000 / 10); }

constexpr const char* or_cpu = ", or use device \"cpu\"";

} // namespace

bool built_with_cuda() { return true; }

std::vector<CudaDevice> cuda_devices() {
    cudaError_t status;
    const int n = visible_devices(status);
    std::vector<CudaDevice> devices;
    if (n == 0) return devices;
    const Management management;
    for (int i = 0; i < n; ++i) {
        cudaDeviceProp properties;
        if (!build_runs_on(compute_capability(i)) || prohibited(i)) continue;
        if (cudaGetDeviceProperties(&properties, i) != cudaSuccess) {
            cudaGetLastError();
            continue;
        }
        devices.push_back({i, properties.name, 10 * properties.major + properties.minor,
                           int64_t(properties.totalGlobalMem), management.free_bytes(properties.uuid)});
    }
    return devices;
}

std::string cuda_unavailable_reason() {
    cudaError_t status;
    const int n = visible_devices(status);
    std::string unusable;
    for (int i = 0; i < n; ++i) {
        const int cc = compute_capability(i);
        if (build_runs_on(cc) && !prohibited(i)) return "";
        if (!unusable.empty()) unusable += ", ";
        unusable += "cuda:" + std::to_string(i) + " is of compute capability " + version(cc * 100);
        if (build_runs_on(cc)) unusable += " and in compute mode prohibited";
    }
    if (n > 0)
        return "no GPU here can run this build, which is for architectures " NGP_CUDA_ARCHITECTURES " (" + unusable +
               "); rebuild with -DCMAKE_CUDA_ARCHITECTURES=native" + or_cpu;

    int driver = 0;
    cudaDriverGetVersion(&driver);
    if (driver == 0) return std::string("no NVIDIA driver was found; install one") + or_cpu;
    if (status == cudaErrorInsufficientDriver)
        return "the NVIDIA driver is for CUDA " + version(driver) + " and older, this build needs " +
               version(CUDART_VERSION) + "; update the driver, rebuild with an older toolkit" + or_cpu;
    if (status != cudaSuccess && status != cudaErrorNoDevice)
        return std::string("the NVIDIA driver does not work: ") + cudaGetErrorName(status) + " (" +
               cudaGetErrorString(status) + "); see whether nvidia-smi does" + or_cpu;
    const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
    return visible ? std::string("no GPU is visible: CUDA_VISIBLE_DEVICES is \"") + visible + "\"; unset it" + or_cpu
                   : std::string("the NVIDIA driver finds no GPU; plug one in") + or_cpu;
}

} // namespace ngp
