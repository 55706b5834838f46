// Unpack: one thread equalises one symbol and puts its two parts into their planes.

#include "arithmetic.cuh"

namespace jscc {

struct alignas(8) Symbol {
    float re;
    float im;
};

// What Smith's division needs of the gain: the smaller part over the larger one, and a reciprocal.
struct Equaliser {
    float ratio;
    float scale;
    bool turned;  // the imaginary part is the larger one
};

JSCC_ELEMENT Equaliser equaliser_of(Symbol gain) {
    const bool turned = magnitude(gain.re) < magnitude(gain.im);
    const float large = turned ? gain.im : gain.re, small = turned ? gain.re : gain.im;
    const float ratio = div(small, large);
    return {ratio, div(1.0f, add(large, mul(small, ratio))), turned};
}

JSCC_ELEMENT Symbol equalise(Symbol symbol, Equaliser by) {
    const Symbol product = {mul(symbol.re, by.ratio), mul(symbol.im, by.ratio)};
    if (by.turned) {
        return {mul(add(product.re, symbol.im), by.scale),
                mul(sub(product.im, symbol.re), by.scale)};
    }
    return {mul(add(symbol.re, product.im), by.scale), mul(sub(symbol.im, product.re), by.scale)};
}

}  // namespace jscc

// `erased` is null where every symbol arrived; `divide` is 0 where the gain is left in.
JSCC_KERNEL unpack(float *planes, const jscc::Symbol *symbols, const jscc::u8 *erased,
                   float gain_re, float gain_im, jscc::u32 divide, jscc::u64 count) {
    using namespace jscc;
    const Equaliser by = equaliser_of({gain_re, gain_im});
    for (u64 i = first_index(); i < count; i += index_stride()) {
        Symbol symbol = {0.0f, 0.0f};
        if (erased == nullptr || erased[i] == 0) {
            symbol = symbols[i];
        }
        if (divide != 0) {
            symbol = equalise(symbol, by);
        }
        planes[i] = symbol.re;
        planes[count + i] = symbol.im;
    }
}
