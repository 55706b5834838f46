// To uint8: one thread makes one pixel of its three colours; blur: one thread, one element.

#include "arithmetic.cuh"

namespace jscc {

struct Size {
    u64 height;
    u64 width;
};

// `index - reach` and `index + reach` inside an axis of `size`: edges are repeated.
JSCC_ELEMENT u64 below(u64 index, u32 reach) { return index < reach ? 0 : index - reach; }

JSCC_ELEMENT u64 above(u64 index, u32 reach, u64 size) {
    return index + reach < size ? index + reach : size - 1;
}

JSCC_ELEMENT float tap(const float *image, const float *minus, u64 i) {
    return minus == nullptr ? image[i] : sub(image[i], minus[i]);
}

// The weights 1 2 1.
JSCC_ELEMENT float binomial(float left, float middle, float right) {
    return add(add(left, mul(2.0f, middle)), right);
}

// Element (y, x) of one plane of `image - minus`, blurred with the binomial 3x3 kernel dilated by
// `reach`.
JSCC_ELEMENT float blur_element(const float *image, const float *minus, u32 reach, Size size, u64 y,
                                u64 x) {
    const u64 ys[3] = {below(y, reach), y, above(y, reach, size.height)};
    const u64 left = below(x, reach), right = above(x, reach, size.width);
    float rows[3];
    for (int i = 0; i < 3; ++i) {
        const u64 row = ys[i] * size.width;
        rows[i] = binomial(tap(image, minus, row + left), tap(image, minus, row + x),
                           tap(image, minus, row + right));
    }
    return mul(binomial(rows[0], rows[1], rows[2]), 0.0625f);
}

// Element (y, x) of one plane with its colours fixed; `correction` may be null.
JSCC_ELEMENT float fixed_element(const float *image, const float *correction, u32 reach, Size size,
                                 u64 y, u64 x) {
    const float value = image[y * size.width + x];
    if (correction == nullptr) {
        return value;
    }
    return add(value, blur_element(correction, nullptr, reach, size, y, x));
}

JSCC_ELEMENT bool finite(float value) { return magnitude(value) <= 0x1.fffffep127f; }

// A finite value of [0, 1], clamped, as a byte; half to even where `nearest`.
JSCC_ELEMENT u8 to_byte(float value, bool nearest) {
    const float clamped = value < 0.0f ? 0.0f : value > 1.0f ? 1.0f : value;
    float scaled = mul(clamped, 255.0f);
    if (nearest) {
        scaled = sub(add(scaled, 8388608.0f), 8388608.0f);  // 2**23: no fraction fits beside it
    }
    return static_cast<u8>(scaled);
}

}  // namespace jscc

// `minus` may be null. `blurred` overlaps no input.
JSCC_KERNEL blur(float *blurred, const float *image, const float *minus, jscc::u32 reach,
                 jscc::u64 planes, jscc::u64 height, jscc::u64 width) {
    using namespace jscc;
    const Size size = {height, width};
    const u64 area = height * width, count = planes * area;
    for (u64 i = first_index(); i < count; i += index_stride()) {
        const u64 within = i % area, plane = i - within;
        const float *other = minus == nullptr ? nullptr : minus + plane;
        blurred[i] =
            blur_element(image + plane, other, reach, size, within / width, within % width);
    }
}

// `correction`, blurred once more on the way, is added to `image`; it may be null. So may `flags`:
// the first becomes 1 where a value is not finite, the second where one differs from the first value.
// Whichever thread sees it says so; they all say the same.
JSCC_KERNEL to_uint8(jscc::u8 *pixels, jscc::u32 *flags, const float *image,
                     const float *correction, jscc::u32 reach, jscc::u32 nearest,
                     jscc::u64 height, jscc::u64 width) {
    using namespace jscc;
    const Size size = {height, width};
    const u64 area = height * width;
    float first = 0.0f;
    if (flags != nullptr && area != 0) {
        first = fixed_element(image, correction, reach, size, 0, 0);
    }
    for (u64 i = first_index(); i < area; i += index_stride()) {
        const u64 y = i / width, x = i % width;
        for (u64 color = 0; color < 3; ++color) {
            const u64 plane = color * area;
            const float *low = correction == nullptr ? nullptr : correction + plane;
            const float value = fixed_element(image + plane, low, reach, size, y, x);
            pixels[3 * i + color] = to_byte(value, nearest != 0);
            if (flags != nullptr) {
                if (!finite(value)) {
                    flags[0] = 1;
                }
                if (value != first) {
                    flags[1] = 1;
                }
            }
        }
    }
}
