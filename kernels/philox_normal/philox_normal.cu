// Philox normal: one thread draws four numbers.

#include "philox_normal/philox_normal.cuh"

JSCC_KERNEL philox_normal(float *normals, jscc::u64 seed, jscc::u64 frame, jscc::u64 step,
                          jscc::u64 count) {
    const jscc::Address address = {seed, frame, step};
    const jscc::u64 blocks = (count + 3) / 4;
    for (jscc::u64 b = jscc::first_index(); b < blocks; b += jscc::index_stride()) {
        jscc::store(normals, 4 * b, count, jscc::philox_normals(address, b));
    }
}
