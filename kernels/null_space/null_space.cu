// Null space: one thread corrects one block of pixels, draws its noise and carries it over a step.
//
// A block is read twice, its means first. The noise of the first reading waits in `after` for the
// second one: drawing costs more than memory.

#include "advance/advance.cuh"
#include "philox_normal/philox_normal.cuh"

namespace jscc {

// Shares of a correction, see reference.py.
struct Shares {
    float gap;
    float fresh;
    float old;
    float inside;
};

// Normals of one address in rising order; four of them share one call of Philox.
struct Draws {
    Address address;
    u64 block;
    Words words;
};

JSCC_ELEMENT Draws draws_from(Address address, u64 index) {
    return {address, index / 4, philox_words(address, index / 4)};
}

JSCC_ELEMENT float draw(Draws &draws, u64 index) {
    if (index / 4 != draws.block) {
        draws.block = index / 4;
        draws.words = philox_words(draws.address, draws.block);
    }
    const Words &w = draws.words;
    const u64 place = index % 4;
    return normal(place == 0 ? w.w0 : place == 1 ? w.w1 : place == 2 ? w.w2 : w.w3);
}

// Noise outside of what A keeps.
JSCC_ELEMENT float outside_element(const Shares &shares, float noise, float eps) {
    Sum sum = {0.0f, true};
    add_term(sum, shares.fresh, noise);
    add_term(sum, shares.old, eps);
    return sum.total;
}

JSCC_ELEMENT float at(const float *array, bool wanted, u64 i) { return wanted ? array[i] : 0.0f; }

}  // namespace jscc

// `after` and `corrected` overlap no input and each other neither.
JSCC_KERNEL null_space(float *after, float *corrected, const float *x, const float *estimate,
                       const float *eps, const float *target, const float *clean_prev,
                       const float *clean_prev2, const float *grad, float a, float b, float c,
                       float e, float s, float g, float d, float gap_share, float fresh_share,
                       float old_share, float inside_share, jscc::u32 project_noise,
                       jscc::u64 seed, jscc::u64 frame, jscc::u64 step, jscc::u64 scale,
                       jscc::u64 planes, jscc::u64 height, jscc::u64 width) {
    using namespace jscc;
    const Row row = {a, b, c, e, s, g, d};
    const Shares shares = {gap_share, fresh_share, old_share, inside_share};
    const Address address = {seed, frame, step};
    const bool directed = d != 0.0f, projected = directed && project_noise != 0;
    const bool aged = old_share != 0.0f;
    const bool drawn =
        s != 0.0f || (directed && (fresh_share != 0.0f || (projected && inside_share != 0.0f)));
    const float area = static_cast<float>(scale * scale);
    const u64 across = width / scale, down = height / scale, blocks = planes * down * across;
    for (u64 block = first_index(); block < blocks; block += index_stride()) {
        const u64 line = block / across;  // of blocks, over all planes: planes follow each other
        const u64 corner = line * scale * width + block % across * scale;
        float total = 0.0f, shift = 0.0f;
        Draws draws = {};
        if (drawn) {
            draws = draws_from(address, corner);
        }
        for (u64 y = 0; y < scale; ++y) {
            for (u64 i = corner + y * width; i < corner + y * width + scale; ++i) {
                total = add(total, estimate[i]);
                const float noise = drawn ? draw(draws, i) : 0.0f;
                after[i] = noise;
                if (projected) {
                    const float outside = outside_element(shares, noise, at(eps, aged, i));
                    shift = add(shift, sub(mul(shares.inside, noise), outside));
                }
            }
        }
        const float mean = div(total, area), mean_shift = div(shift, area);
        for (u64 y = 0; y < scale; ++y) {
            for (u64 i = corner + y * width; i < corner + y * width + scale; ++i) {
                const float noise = after[i];
                const float clean =
                    sub(estimate[i], mul(shares.gap, sub(mean, target[i])));
                float direction = 0.0f;
                if (directed) {
                    direction = outside_element(shares, noise, at(eps, aged, i));
                    direction = projected ? add(direction, mean_shift) : direction;
                }
                corrected[i] = clean;
                after[i] = advance_element(
                    row, {at(x, a != 0.0f, i), clean, at(clean_prev, c != 0.0f, i),
                          at(clean_prev2, e != 0.0f, i), noise, at(grad, g != 0.0f, i), direction});
            }
        }
    }
}
