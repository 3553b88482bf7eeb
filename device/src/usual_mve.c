/* Max pools and additions on a core with vectors of four int32. */
#include "lines.h"

#if ENTROPI_MVE

/* Where the windows of a pool see the input, as positions in a plane, and what they see beyond. */
typedef struct {
    int32_t top, bottom, left, right, beyond;
} view;

/* The largest values in rows y0 to y1 - 1 of four windows, `stride` apart, the first of which begins at column `at`. */
static fours largest_of_fours(const layer *l, const view *v, const int8_t *plane, int32_t pitch, int32_t y0, int32_t y1,
                              int32_t at)
{
    const int32_t stride = l->stride_w, end = at + (FOUR - 1) * stride + l->kernel_w;
    const uint32x4_t offsets = vmulq_n_u32(vidupq_n_u32(0, 1), (uint32_t)stride);
    fours value = vdupq_n_s32(y1 - y0 == l->kernel_h ? INT8_MIN : v->beyond);
    if (at >= v->left && end <= v->right) {
        for (const int8_t *row = plane + y0 * pitch + at; y0 < y1; y0++, row += pitch)
            for (uint32_t x = 0; x < l->kernel_w; x++)
                value = vmaxq_s32(value, vldrbq_gather_offset_s32(row + x, offsets));
        return value;
    }
    for (int32_t x = at; x < at + l->kernel_w; x++) {
        const fours columns = vaddq_n_s32(vreinterpretq_s32_u32(offsets), x);
        const mve_pred16_t inside = vcmpgeq_m_n_s32(columns, v->left, vcmpltq_n_s32(columns, v->right));
        value = vpselq_s32(value, vmaxq_s32(value, vdupq_n_s32(v->beyond)), inside);
        for (int32_t y = y0; y < y1; y++)
            value = vmaxq_m_s32(value, value, vldrbq_gather_offset_z_s32(plane + y * pitch + x, offsets, inside), inside);
    }
    return value;
}

/* MAX_POOL_2D. */
int run_usual_max_pool(const work *w)
{
    const layer *l = &w->layer;
    const tensor *in = &w->in, *out = &w->out;
    const int clipped = l->encoding == WINDOW_CLIPPED;
    const view v = {
        .top = clipped ? 0 : -in->top,
        .bottom = in->height + (clipped ? 0 : in->bottom),
        .left = clipped ? 0 : -in->left,
        .right = in->width + (clipped ? 0 : in->right),
        .beyond = clipped ? INT8_MIN : in->zero_point,
    };
    const int8_t *plane = w->activations + interior(in);
    for (uint32_t c = 0; c < out->channels; c++, plane += in->plane)
        for (uint32_t y = 0; y < out->height; y++) {
            const int32_t at = (int32_t)(y * l->stride_h) - l->pad_top, end = at + l->kernel_h;
            const int32_t y0 = at < v.top ? v.top : at, y1 = end > v.bottom ? v.bottom : end;
            int8_t *to = w->activations + interior(out) + c * out->plane + y * out->pitch;
            int32_t x = -l->pad_left;
            for (int32_t left = out->width; left > 0; left -= FOUR, to += FOUR, x += FOUR * l->stride_w) {
                const fours value = largest_of_fours(l, &v, plane, (int32_t)in->pitch, y0, y1, x);
                const fours held = vminq_s32(vmaxq_s32(value, vdupq_n_s32(l->low)), vdupq_n_s32(l->high));
                vstrbq_p_s32(to, held, vctp32q((uint32_t)left));
            }
        }
    return 1;
}

/* An operand's values on the common scale. */
static inline fours term_of(const tensor *t, const row_scale *scale, const int8_t *from, mve_pred16_t lanes)
{
    const fours value = vsubq_n_s32(vldrbq_z_s32(from, lanes), t->zero_point);
    return requantise_fours(vshlq_n_s32(value, ADD_HEADROOM_BITS), scale->multiplier, scale->shift);
}

/* ADD of two tensors of one size. */
int run_usual_add(const work *w)
{
    const tensor *a = &w->in, *b = &w->second, *out = &w->out;
    const uint8_t *const scales = w->image + w->layer.parameters_at;
    const row_scale scale_a = scale_at(scales), scale_b = scale_at(scales + 8), to_out = scale_at(scales + 16);
    const range outputs = range_of(&w->layer, out);
    if (!same_size(a, out) || !same_size(b, out))
        return 0;
    const layout all = plan_lines(a, b, out);
    for (uint32_t c = 0; c < all.planes; c++)
        for (uint32_t y = 0; y < all.lines; y++) {
            const int8_t *pa = w->activations + interior(a) + c * a->plane + y * a->pitch;
            const int8_t *pb = w->activations + interior(b) + c * b->plane + y * b->pitch;
            int8_t *to = w->activations + interior(out) + c * out->plane + y * out->pitch;
            for (int32_t left = (int32_t)all.length; left > 0; left -= FOUR, pa += FOUR, pb += FOUR, to += FOUR) {
                const mve_pred16_t lanes = vctp32q((uint32_t)left);
                const fours sum = vaddq_s32(term_of(a, &scale_a, pa, lanes), term_of(b, &scale_b, pb, lanes));
                vstrbq_p_s32(to, outputs_of(sum, &to_out, &outputs), lanes);
            }
        }
    return 1;
}
#endif
