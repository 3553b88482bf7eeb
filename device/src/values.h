/* What layers compute with: the values of one image or, where batch.c compiles the same code once more, those of
 * ENTROPI_IMAGES images at once, a vector with one lane an image. */
#ifndef ENTROPI_VALUES_H
#define ENTROPI_VALUES_H

#include <stdint.h>

#if defined(ENTROPI_IMAGES)

enum { IMAGES = ENTROPI_IMAGES };
#define VECTOR(type) __attribute__((vector_size(sizeof(type) * ENTROPI_IMAGES)))
typedef int8_t int8s VECTOR(int8_t);
typedef int16_t int16s VECTOR(int16_t);
typedef int32_t int32s VECTOR(int32_t);
typedef uint32_t uint32s VECTOR(uint32_t);
typedef int64_t int64s VECTOR(int64_t);
typedef uint64_t uint64s VECTOR(uint64_t);

static inline int32s widened(const int8s *x) { return __builtin_convertvector(*x, int32s); }

static inline void narrow(int32s x, int8s *to) { *to = __builtin_convertvector(x, int8s); }

static inline int32s in_all(int32_t x) { return (int32s){0} + x; }

/* a where a condition is true, else b. */
static inline int32s choose(int32s condition, int32s a, int32s b) { return (a & condition) | (b & ~condition); }

/* x * multiplier / 2^31 rounded half up. */
static inline int32s multiply_rounded(int32s x, int32_t multiplier)
{
    const int64s product = __builtin_convertvector(x, int64s) * (int64_t)multiplier;
    return __builtin_convertvector((uint64s)(product + ((int64_t)1 << 30)) >> 31, int32s);
}

#else

enum { IMAGES = 1 };
typedef int8_t int8s;
typedef int32_t int32s;
typedef uint32_t uint32s;

static inline int32s widened(const int8s *x) { return *x; }

static inline void narrow(int32s x, int8s *to) { *to = (int8_t)x; }

static inline int32s in_all(int32_t x) { return x; }

static inline int32s choose(int condition, int32s a, int32s b) { return condition ? a : b; }

/* x * multiplier / 2^31 rounded half up: bits 31 to 62 of the product, and the one below. */
static inline int32s multiply_rounded(int32s x, int32_t multiplier)
{
    const int64_t product = (int64_t)x * multiplier;
    const uint32_t high = (uint32_t)((uint64_t)product >> 32), low = (uint32_t)product;
    return (int32_t)((high << 1 | low >> 31) + (low >> 30 & 1u));
}

#endif

/* high / 2^right rounded half away from zero; right is at least 1, half is 2^(right - 1). */
static inline int32s divide_rounded(int32s high, uint32_t half, int right)
{
    return (int32s)((uint32s)high + half + (uint32s)(high >> 31)) >> right;
}

/* round(x * multiplier / 2^31 * 2^shift), rounded twice as TFLM's default build does: first half up, then half away
 * from zero. multiplier >= 0, -31 <= shift <= 30, and |x| + 2^(-shift - 1) < 2^31, else the result wraps. */
static inline int32s requantise(int32s x, int32_t multiplier, int shift)
{
    if (shift < 0)
        return divide_rounded(multiply_rounded(x, multiplier), 1u << (-shift - 1), -shift);
    return multiply_rounded((int32s)((uint32s)x << (uint32_t)shift), multiplier);
}

static inline int32s larger(int32s a, int32s b) { return choose(b > a, b, a); }
static inline int32s smaller(int32s a, int32s b) { return choose(b < a, b, a); }

/* An output: a scaled sum, moved by the zero point and held to the range. */
static inline void put_value(int32s scaled, int32_t zero_point, int32_t low, int32_t high, int8s *to)
{
    const int32s moved = (int32s)((uint32s)scaled + (uint32_t)zero_point);
    narrow(smaller(larger(moved, in_all(low)), in_all(high)), to);
}

#endif
