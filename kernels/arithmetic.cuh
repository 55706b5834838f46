// Arithmetic: what the kernels share. Types, the loop over elements, and operations that round once.
//
// One text for two machines. nvcc and NVRTC compile it for a device; a C++ compiler compiles it for
// the host, where every kernel is a plain function and a loop takes the place of the grid, so that
// tests hold the very element functions of the device to the numpy reference.
//
// NOTE: mul, add and sub are rounded to nearest each by itself on a device, whatever the compiler's
// --fmad says. A host compiler has to be told: -ffp-contract=off.

#ifndef JSCC_ARITHMETIC_CUH
#define JSCC_ARITHMETIC_CUH

namespace jscc {

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

constexpr int THREADS = 256;  // of a block, at most

}  // namespace jscc

#ifdef __CUDACC__

#define JSCC_ELEMENT __host__ __device__ __forceinline__
#define JSCC_KERNEL extern "C" __global__ void __launch_bounds__(jscc::THREADS)

namespace jscc {

__device__ __forceinline__ u64 first_index() {
    return static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x;
}

__device__ __forceinline__ u64 index_stride() {
    return static_cast<u64>(gridDim.x) * blockDim.x;
}

}  // namespace jscc

#else

#define JSCC_ELEMENT static inline
#define JSCC_KERNEL extern "C" void

namespace jscc {

struct Thread {
    u64 first;
    u64 stride;
};

// Which thread of how many the host plays; alone by default.
static Thread thread = {0, 1};

static inline u64 first_index() { return thread.first; }

static inline u64 index_stride() { return thread.stride; }

}  // namespace jscc

extern "C" void play_thread(jscc::u64 first, jscc::u64 stride) { jscc::thread = {first, stride}; }

#endif

namespace jscc {

#ifdef __CUDA_ARCH__

JSCC_ELEMENT float mul(float a, float b) { return __fmul_rn(a, b); }
JSCC_ELEMENT float add(float a, float b) { return __fadd_rn(a, b); }
JSCC_ELEMENT float sub(float a, float b) { return __fsub_rn(a, b); }
JSCC_ELEMENT float div(float a, float b) { return __fdiv_rn(a, b); }
JSCC_ELEMENT double mul(double a, double b) { return __dmul_rn(a, b); }
JSCC_ELEMENT double add(double a, double b) { return __dadd_rn(a, b); }
JSCC_ELEMENT double sub(double a, double b) { return __dsub_rn(a, b); }
JSCC_ELEMENT double div(double a, double b) { return __ddiv_rn(a, b); }
JSCC_ELEMENT double root(double a) { return __dsqrt_rn(a); }
JSCC_ELEMENT float to_float(double a) { return __double2float_rn(a); }
JSCC_ELEMENT u64 high_product(u64 a, u64 b) { return __umul64hi(a, b); }
JSCC_ELEMENT u64 bits_of(double a) { return static_cast<u64>(__double_as_longlong(a)); }
JSCC_ELEMENT double from_bits(u64 a) { return __longlong_as_double(static_cast<long long>(a)); }

#else

JSCC_ELEMENT float mul(float a, float b) { return a * b; }
JSCC_ELEMENT float add(float a, float b) { return a + b; }
JSCC_ELEMENT float sub(float a, float b) { return a - b; }
JSCC_ELEMENT float div(float a, float b) { return a / b; }
JSCC_ELEMENT double mul(double a, double b) { return a * b; }
JSCC_ELEMENT double add(double a, double b) { return a + b; }
JSCC_ELEMENT double sub(double a, double b) { return a - b; }
JSCC_ELEMENT double div(double a, double b) { return a / b; }
JSCC_ELEMENT double root(double a) { return __builtin_sqrt(a); }
JSCC_ELEMENT float to_float(double a) { return static_cast<float>(a); }
JSCC_ELEMENT u64 high_product(u64 a, u64 b) {
    __extension__ typedef unsigned __int128 Wide;
    return static_cast<u64>((static_cast<Wide>(a) * b) >> 64);
}
JSCC_ELEMENT u64 bits_of(double a) {
    u64 bits;
    __builtin_memcpy(&bits, &a, sizeof bits);
    return bits;
}
JSCC_ELEMENT double from_bits(u64 bits) {
    double a;
    __builtin_memcpy(&a, &bits, sizeof a);
    return a;
}

#endif

JSCC_ELEMENT float magnitude(float a) { return a < 0.0f ? -a : a; }

JSCC_ELEMENT double magnitude(double a) { return a < 0.0 ? -a : a; }

// Four numbers that one instruction moves where their address allows it.
struct alignas(16) Quad {
    float value[4];
};

JSCC_ELEMENT bool aligned(const void *address) {
    return (reinterpret_cast<u64>(address) & 15) == 0;
}

// Elements `start` to `start + 3` of `source`, zero from `count` on.
JSCC_ELEMENT Quad load(const float *source, u64 start, u64 count) {
    if (start + 4 <= count && aligned(source + start)) {
        return *reinterpret_cast<const Quad *>(source + start);
    }
    Quad quad;
    for (int i = 0; i < 4; ++i) {
        quad.value[i] = start + i < count ? source[start + i] : 0.0f;
    }
    return quad;
}

JSCC_ELEMENT void store(float *target, u64 start, u64 count, Quad quad) {
    if (start + 4 <= count && aligned(target + start)) {
        *reinterpret_cast<Quad *>(target + start) = quad;
        return;
    }
    for (int i = 0; i < 4; ++i) {
        if (start + i < count) {
            target[start + i] = quad.value[i];
        }
    }
}

// A sum of factors times terms from left to right, each operation rounded once; a term whose factor
// is zero is left out.
struct Sum {
    float total;
    bool empty;
};

JSCC_ELEMENT void add_term(Sum &sum, float factor, float term) {
    if (factor != 0.0f) {
        const float product = mul(factor, term);
        sum.total = sum.empty ? product : add(sum.total, product);
        sum.empty = false;
    }
}

}  // namespace jscc

#endif
