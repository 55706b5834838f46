// Advance, the element function: see reference.py, which it matches bit for bit.

#ifndef JSCC_ADVANCE_CUH
#define JSCC_ADVANCE_CUH

#include "arithmetic.cuh"

namespace jscc {

// A row of the table, rounded to float32.
struct Row {
    float a;
    float b;
    float c;
    float e;
    float s;
    float g;
    float d;
};

// What the row weighs, for one element; what has no weight may hold anything.
struct Terms {
    float x;
    float clean;
    float clean_prev;
    float clean_prev2;
    float noise;
    float grad;
    float direction;
};

JSCC_ELEMENT float advance_element(const Row &row, const Terms &terms) {
    Sum sum = {0.0f, true};
    add_term(sum, row.a, terms.x);
    add_term(sum, row.b, terms.clean);
    add_term(sum, row.c, terms.clean_prev);
    add_term(sum, row.e, terms.clean_prev2);
    add_term(sum, row.s, terms.noise);
    add_term(sum, -row.g, terms.grad);
    add_term(sum, row.d, terms.direction);
    return sum.total;
}

}  // namespace jscc

#endif
