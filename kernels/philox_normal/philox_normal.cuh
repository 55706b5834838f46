// Philox normal, the element functions: see reference.py, which they match bit for bit.

#ifndef JSCC_PHILOX_NORMAL_CUH
#define JSCC_PHILOX_NORMAL_CUH

#include "arithmetic.cuh"

namespace jscc {

// Whose noise it is.
struct Address {
    u64 seed;
    u64 frame;
    u64 step;
};

struct Words {
    u64 w0;
    u64 w1;
    u64 w2;
    u64 w3;
};

// Words 4 * block to 4 * block + 3: Philox4x64-10 of counter (1 + block, step, 0, 0).
JSCC_ELEMENT Words philox_words(Address address, u64 block) {
    u64 k0 = address.seed, k1 = address.frame;
    Words c = {1 + block, address.step, 0, 0};
    for (int round = 0; round < 10; ++round) {
        const u64 m0 = 0xD2E7470EE14C6C93ull, m1 = 0xCA5A826395121157ull;
        const u64 high0 = high_product(m0, c.w0), low0 = m0 * c.w0;
        const u64 high1 = high_product(m1, c.w2), low1 = m1 * c.w2;
        c = {high1 ^ c.w1 ^ k0, low1, high0 ^ c.w3 ^ k1, low0};
        k0 += 0x9E3779B97F4A7C15ull;
        k1 += 0xBB67AE8584CAA73Bull;
    }
    return c;
}

JSCC_ELEMENT double uniform(u64 word) {
    return mul(add(static_cast<double>(word >> 12), 0.5), 0x1p-52);
}

// Horner's rule, highest power first.
JSCC_ELEMENT double horner(double, double value) { return value; }

template <class... Rest>
JSCC_ELEMENT double horner(double r, double value, double next, Rest... rest) {
    return horner(r, add(mul(value, r), next), rest...);
}

// -log(x) of positive normal numbers below 1/4.
JSCC_ELEMENT double minus_log(double x) {
    const u64 bits = bits_of(x);
    int exponent = static_cast<int>(bits >> 52) - 1022;
    double mantissa = from_bits((bits & 0x000FFFFFFFFFFFFFull) | 0x3FE0000000000000ull);
    if (mantissa < 0x1.6a09e667f3bcdp-1) {
        mantissa = mul(mantissa, 2.0);
        exponent -= 1;
    }
    const double s = div(sub(mantissa, 1.0), add(mantissa, 1.0));
    const double square = mul(s, s);
    const double series =
        horner(square, 1.0 / 25, 1.0 / 23, 1.0 / 21, 1.0 / 19, 1.0 / 17, 1.0 / 15, 1.0 / 13,
               1.0 / 11, 1.0 / 9, 1.0 / 7, 1.0 / 5, 1.0 / 3);
    const double twice = mul(2.0, s);
    const double log_mantissa = add(twice, mul(twice, mul(square, series)));
    const double e = static_cast<double>(exponent);
    const double high = mul(e, 0x1.62e42fefa38p-1), low = mul(e, 0x1.ef35793c7673p-45);
    return -add(high, add(low, log_mantissa));
}

JSCC_ELEMENT double quantile_centre(double r) {
    return div(
        horner(r, 2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4,
               4.5921953931549871457e4, 1.3731693765509461125e4, 1.9715909503065514427e3,
               1.3314166789178437745e2, 3.3871328727963666080e0),
        horner(r, 5.2264952788528545610e3, 2.8729085735721942674e4, 3.9307895800092710610e4,
               2.1213794301586595867e4, 5.3941960214247511077e3, 6.8718700749205790830e2,
               4.2313330701600911252e1, 1.0));
}

JSCC_ELEMENT double quantile_tail(double r) {
    return div(
        horner(r, 7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1,
               1.27045825245236838258e0, 3.64784832476320460504e0, 5.76949722146069140550e0,
               4.63033784615654529590e0, 1.42343711074968357734e0),
        horner(r, 1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2,
               1.48103976427480074590e-1, 6.89767334985100004550e-1, 1.67638483018380384940e0,
               2.05319162663775882187e0, 1.0));
}

JSCC_ELEMENT double quantile_far_tail(double r) {
    return div(
        horner(r, 2.01033439929228813265e-7, 2.71155556874348757815e-5, 1.24266094738807843860e-3,
               2.65321895265761230930e-2, 2.96560571828504891230e-1, 1.78482653991729133580e0,
               5.46378491116411436990e0, 6.65790464350110377720e0),
        horner(r, 2.04426310338993978564e-15, 1.42151175831644588870e-7, 1.84631831751005468180e-5,
               7.86869131145613259100e-4, 1.48753612908506148525e-2, 1.36929880922735805310e-1,
               5.99832206555887937690e-1, 1.0));
}

// The normal quantile of `p` in (0, 1).
JSCC_ELEMENT double normal_quantile(double p) {
    const double q = sub(p, 0.5);
    if (magnitude(q) <= 0.425) {
        return mul(q, quantile_centre(sub(0.180625, mul(q, q))));
    }
    const double rest = sub(1.0, p);
    const double r = root(minus_log(p < rest ? p : rest));
    const double tail = r <= 5.0 ? quantile_tail(sub(r, 1.6)) : quantile_far_tail(sub(r, 5.0));
    return q < 0.0 ? -tail : tail;
}

JSCC_ELEMENT float normal(u64 word) { return to_float(normal_quantile(uniform(word))); }

// Numbers 4 * block to 4 * block + 3 of an address.
JSCC_ELEMENT Quad philox_normals(Address address, u64 block) {
    const Words words = philox_words(address, block);
    return {{normal(words.w0), normal(words.w1), normal(words.w2), normal(words.w3)}};
}

}  // namespace jscc

#endif
