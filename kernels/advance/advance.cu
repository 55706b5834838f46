// Advance: one thread carries four elements over one step and draws their noise itself.

#include "advance/advance.cuh"
#include "philox_normal/philox_normal.cuh"

namespace jscc {

// Absent terms are not looked at.
JSCC_ELEMENT Quad load_term(float factor, const float *term, u64 start, u64 count) {
    if (factor != 0.0f) {
        return load(term, start, count);
    }
    return {{0.0f, 0.0f, 0.0f, 0.0f}};
}

}  // namespace jscc

// `after` may be `x`; otherwise it overlaps no input.
JSCC_KERNEL advance(float *after, const float *x, const float *clean, const float *clean_prev,
                    const float *clean_prev2, const float *grad, const float *direction, float a,
                    float b, float c, float e, float s, float g, float d, jscc::u64 seed,
                    jscc::u64 frame, jscc::u64 step, jscc::u64 count) {
    using namespace jscc;
    const Row row = {a, b, c, e, s, g, d};
    const Address address = {seed, frame, step};
    const u64 blocks = (count + 3) / 4;
    for (u64 block = first_index(); block < blocks; block += index_stride()) {
        const u64 start = 4 * block;
        const Quad state = load_term(a, x, start, count);
        const Quad now = load_term(b, clean, start, count);
        const Quad before = load_term(c, clean_prev, start, count);
        const Quad earlier = load_term(e, clean_prev2, start, count);
        const Quad pull = load_term(g, grad, start, count);
        const Quad way = load_term(d, direction, start, count);
        Quad noise = {{0.0f, 0.0f, 0.0f, 0.0f}};
        if (s != 0.0f) {
            noise = philox_normals(address, block);
        }
        Quad result;
        for (int i = 0; i < 4; ++i) {
            result.value[i] = advance_element(
                row, {state.value[i], now.value[i], before.value[i], earlier.value[i],
                      noise.value[i], pull.value[i], way.value[i]});
        }
        store(after, start, count, result);
    }
}
