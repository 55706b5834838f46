// libcuda's place, taken by this host: what the real cuda-python calls when there is no device.
//
// Memory is the host's, a module is checked to be a cubin with the entry that is asked for, and a
// launch runs the same source compiled for the host: KERNELS holds one library of each kernel, with
// a function launch_ENTRY that takes a launch's arguments as the driver does, as addresses. Work is
// done at once, but while a stream is captured, which is when it becomes a graph.

#include <dlfcn.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

namespace {

constexpr int SUCCESS = 0;

using Graph = std::vector<std::function<void()>>;

Graph *captured = nullptr;  // what becomes of the stream's work meanwhile
int marks = 0;

template <class Work>
int give(Work work) {
    if (captured == nullptr) {
        work();
    } else {
        captured->push_back(work);
    }
    return SUCCESS;
}

constexpr int INVALID_VALUE = 1, INVALID_IMAGE = 200, NOT_FOUND = 500;
const char *const LIBRARIES[] = {KERNELS};

struct Function {
    void (*launch)(void **);
    void (*play_thread)(std::uint64_t, std::uint64_t);
};

std::uint64_t read(const char *image, int offset, int bytes) {
    std::uint64_t value = 0;
    std::memcpy(&value, image + offset, bytes);
    return value;
}

// Size of an ELF file whose section headers come last but for the program headers.
std::size_t size_of(const char *image) {
    const std::size_t sections = read(image, 40, 8) + read(image, 58, 2) * read(image, 60, 2);
    const std::size_t programs = read(image, 32, 8) + read(image, 54, 2) * read(image, 56, 2);
    return sections > programs ? sections : programs;
}

}  // namespace

extern "C" {

int cuInit(unsigned) { return SUCCESS; }

int cuDriverGetVersion(int *version) {
    *version = 13000;
    return SUCCESS;
}

int cuDeviceGetCount(int *count) {
    *count = 1;
    return SUCCESS;
}

int cuDeviceGet(int *device, int ordinal) {
    *device = ordinal;
    return SUCCESS;
}

int cuDeviceGetName(char *name, int length, int) {
    std::strncpy(name, "stand-in", static_cast<std::size_t>(length));
    return SUCCESS;
}

int cuDeviceGetAttribute(int *value, int attribute, int) {
    *value = attribute == 75 ? 9 : 0;  // compute capability 9.0
    return SUCCESS;
}

int cuDevicePrimaryCtxRetain(void **context, int) {
    *context = context;
    return SUCCESS;
}

int cuDevicePrimaryCtxRelease(int) { return SUCCESS; }

int cuCtxSetCurrent(void *context) { return context == nullptr ? INVALID_VALUE : SUCCESS; }

int cuStreamCreate(void **stream, unsigned) {
    *stream = stream;
    return SUCCESS;
}

int cuStreamSynchronize(void *) { return SUCCESS; }

int cuStreamDestroy(void *) { return SUCCESS; }

int cuMemAlloc(std::uint64_t *pointer, std::size_t size) {
    if (size == 0) {
        return INVALID_VALUE;
    }
    *pointer = reinterpret_cast<std::uint64_t>(std::aligned_alloc(256, (size + 255) / 256 * 256));
    return SUCCESS;
}

int cuMemFree(std::uint64_t pointer) {
    std::free(reinterpret_cast<void *>(pointer));
    return SUCCESS;
}

int cuMemcpyHtoDAsync(std::uint64_t target, const void *source, std::size_t size, void *) {
    return give([=] { std::memcpy(reinterpret_cast<void *>(target), source, size); });
}

int cuMemcpyDtoHAsync(void *target, std::uint64_t source, std::size_t size, void *) {
    return give([=] { std::memcpy(target, reinterpret_cast<const void *>(source), size); });
}

int cuMemcpyDtoDAsync(std::uint64_t target, std::uint64_t source, std::size_t size, void *stream) {
    return cuMemcpyDtoHAsync(reinterpret_cast<void *>(target), source, size, stream);
}

int cuMemsetD8Async(std::uint64_t target, unsigned char value, std::size_t size, void *) {
    return give([=] { std::memset(reinterpret_cast<void *>(target), value, size); });
}

int cuStreamBeginCapture(void *, int mode) {
    captured = new Graph;
    return mode == 1 ? SUCCESS : INVALID_VALUE;  // of this thread alone
}

int cuStreamEndCapture(void *, void **graph) {
    *graph = captured;
    captured = nullptr;
    return SUCCESS;
}

int cuGraphInstantiateWithFlags(void **made, void *graph, unsigned long long flags) {
    *made = new Graph(*static_cast<Graph *>(graph));
    return flags == 0 ? SUCCESS : INVALID_VALUE;
}

int cuGraphLaunch(void *graph, void *) {
    for (const auto &work : *static_cast<Graph *>(graph)) {
        work();
    }
    return SUCCESS;
}

int cuGraphDestroy(void *graph) {
    delete static_cast<Graph *>(graph);
    return SUCCESS;
}

int cuGraphExecDestroy(void *graph) { return cuGraphDestroy(graph); }

int cuEventCreate(void **event, unsigned) {
    *event = new int;
    return SUCCESS;
}

int cuEventRecord(void *event, void *) {
    *static_cast<int *>(event) = ++marks;
    return SUCCESS;
}

int cuEventElapsedTime(float *elapsed_ms, void *begun, void *ended) {
    *elapsed_ms = static_cast<float>(*static_cast<int *>(ended) - *static_cast<int *>(begun));
    return SUCCESS;
}

int cuEventDestroy(void *event) {
    delete static_cast<int *>(event);
    return SUCCESS;
}

int cuModuleLoadData(void **module, const void *image) {
    const char *bytes = static_cast<const char *>(image);
    if (std::memcmp(bytes, "\x7f" "ELF\x02\x01\x01", 7) != 0) {
        return INVALID_IMAGE;
    }
    *module = new std::string(bytes, size_of(bytes));
    return SUCCESS;
}

int cuModuleGetFunction(void **function, void *module, const char *name) {
    const std::string section = std::string(".text.") + name + '\0';
    if (static_cast<std::string *>(module)->find(section) == std::string::npos) {
        return NOT_FOUND;
    }
    for (const char *path : LIBRARIES) {
        void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        void *launch = dlsym(library, (std::string("launch_") + name).c_str());
        if (launch != nullptr) {
            void *play = dlsym(library, "play_thread");
            *function = new Function{reinterpret_cast<void (*)(void **)>(launch),
                                     reinterpret_cast<void (*)(std::uint64_t, std::uint64_t)>(play)};
            return SUCCESS;
        }
    }
    return NOT_FOUND;
}

int cuLaunchKernel(void *function, unsigned grid, unsigned, unsigned, unsigned block, unsigned,
                   unsigned, unsigned, void *, void **arguments, void **) {
    const auto *started = static_cast<Function *>(function);
    const std::uint64_t threads = static_cast<std::uint64_t>(grid) * block;
    for (std::uint64_t thread = 0; thread < threads; ++thread) {
        started->play_thread(thread, threads);
        started->launch(arguments);
    }
    return SUCCESS;
}

// NVRTC looks into a driver that is there for tables of its own; it can do without.
int cuGetExportTable(const void **table, const void *) {
    *table = nullptr;
    return NOT_FOUND;
}

int cuGetProcAddress_v2(const char *name, void **function, int, std::uint64_t, int *) {
    *function = dlsym(dlopen(SELF, RTLD_NOW | RTLD_NOLOAD), name);
    return SUCCESS;
}

}  // extern "C"
