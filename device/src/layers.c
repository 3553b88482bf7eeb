/* Pooling and elementwise layers, each after the TFLM operator it names. */
#include "internal.h"

/* MAX_POOL_2D; padding takes part as the border's value, as after an explicit PAD. */
void run_max_pool(const layer *l, const tensor *in, const tensor *out, int8_t *activations)
{
    for (uint32_t c = 0; c < out->channels; c++)
        for (uint32_t y = 0; y < out->height; y++)
            for (uint32_t x = 0; x < out->width; x++) {
                const int8_t *window = activations + interior(in) + c * in->plane + y * l->stride_h * in->pitch +
                                       x * l->stride_w - l->pad_top * in->pitch - l->pad_left;
                int8_t best = -128;
                for (uint32_t ky = 0; ky < l->kernel_h; ky++, window += in->pitch)
                    for (uint32_t kx = 0; kx < l->kernel_w; kx++)
                        best = window[kx] > best ? window[kx] : best;
                activations[interior(out) + c * out->plane + y * out->pitch + x] = clamp_i8(best, l->low, l->high);
            }
}

/* ADD: both inputs are brought to a common scale with ADD_HEADROOM_BITS more bits. */
void run_add(const uint8_t *image, const layer *l, const tensor *a, const tensor *b, const tensor *out,
             int8_t *activations)
{
    const uint8_t *p = image + l->parameters_at;
    const int32_t multiplier_a = load_i32(p), shift_a = load_i32(p + 4);
    const int32_t multiplier_b = load_i32(p + 8), shift_b = load_i32(p + 12);
    const int32_t multiplier_out = load_i32(p + 16), shift_out = load_i32(p + 20);
    const int32_t zero_a = a->zero_point, zero_b = b->zero_point, zero_out = out->zero_point;
    const int32_t low = l->low, high = l->high;
    for (uint32_t c = 0; c < out->channels; c++)
        for (uint32_t y = 0; y < out->height; y++) {
            const int8_t *pa = activations + interior(a) + c * a->plane + y * a->pitch;
            const int8_t *pb = activations + interior(b) + c * b->plane + y * b->pitch;
            int8_t *to = activations + interior(out) + c * out->plane + y * out->pitch;
            for (const int8_t *end = to + out->width; to != end;) {
                const int32_t va = (*pa++ - zero_a) * (1 << ADD_HEADROOM_BITS);
                const int32_t vb = (*pb++ - zero_b) * (1 << ADD_HEADROOM_BITS);
                /* Unsigned: a hostile image may make these sums wrap. */
                const int32_t sum = (int32_t)((uint32_t)requantise(va, multiplier_a, shift_a) +
                                              (uint32_t)requantise(vb, multiplier_b, shift_b));
                const int32_t scaled = requantise(sum, multiplier_out, shift_out);
                *to++ = clamp_i8((int32_t)((uint32_t)scaled + (uint32_t)zero_out), low, high);
            }
        }
}

/* MEAN over height and width. */
void run_mean(const uint8_t *image, const layer *l, const tensor *in, const tensor *out, int8_t *activations)
{
    const int32_t multiplier = load_i32(image + l->parameters_at), shift = load_i32(image + l->parameters_at + 4);
    const int32_t count = (int32_t)in->height * in->width;
    for (uint32_t c = 0; c < out->channels; c++) {
        const int8_t *row = activations + interior(in) + c * in->plane;
        int32_t sum = 0;
        for (uint32_t y = 0; y < in->height; y++, row += in->pitch)
            for (uint32_t x = 0; x < in->width; x++)
                sum += row[x];
        const int32_t scaled = requantise(sum - count * in->zero_point, multiplier, shift);
        activations[interior(out) + c * out->plane] =
            clamp_i8((int32_t)((uint32_t)scaled + (uint32_t)out->zero_point), l->low, l->high);
    }
}
