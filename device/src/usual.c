/* The usual cases of pools and additions, in fewer instructions than layers.c takes for any case. */
#include "internal.h"
#include "lines.h"
#include "vectors.h"

#if !ENTROPI_MVE

enum { LINE = 128 };

static inline int8_t larger_byte(int8_t a, int8_t b) { return a > b ? a : b; }

/* The largest value, or `least`, in each column of some rows. */
static void largest_in_columns(const int8_t *from, uint32_t pitch, uint32_t rows, int8_t least, int8_t *line,
                               uint32_t columns)
{
    const int8_t *const end = line + columns;
#if ENTROPI_DSP
    for (const uint32_t start = 0x01010101u * (uint8_t)least; end - line >= 4; line += 4, from += 4) {
        const int8_t *below = from;
        uint32_t values = start;
        for (uint32_t row = rows; row; row--, below += pitch)
            values = larger_bytes(values, load_4(below));
        store_4(line, values);
    }
#endif
#if ENTROPI_HOST_VECTORS
    for (; end - line >= SIXTEEN; line += SIXTEEN, from += SIXTEEN) {
        const int8_t *below = from;
        int8_t values[SIXTEEN];
        for (uint32_t i = 0; i < SIXTEEN; i++)
            values[i] = least;
        for (uint32_t row = rows; row; row--, below += pitch)
            for (uint32_t i = 0; i < SIXTEEN; i++)
                values[i] = larger_byte(values[i], below[i]);
        copy_bytes(line, values, SIXTEEN);
    }
#endif
    for (; line != end; from++) {
        const int8_t *below = from;
        int8_t value = least;
        for (uint32_t row = rows; row; row--, below += pitch)
            value = larger_byte(value, *below);
        *line++ = value;
    }
}

SPECIALISE void largest_in_windows(const int8_t *line, uint32_t stride, uint32_t kernel, int8_t *to, uint32_t count)
{
    for (const int8_t *end = to + count; to != end; line += stride) {
        int8_t value = *line;
        for (uint32_t i = 1; i < kernel; i++)
            value = larger_byte(value, line[i]);
        *to++ = value;
    }
}

/* MAX_POOL_2D: the largest values of columns, then of these. An output may lie over an input, each of its channels
 * before the input's of the same number. */
int run_usual_max_pool(const work *w)
{
    const layer *l = &w->layer;
    const tensor *in = &w->in, *out = &w->out;
    const int clipped = l->encoding == WINDOW_CLIPPED;
    const int8_t outside = clipped ? INT8_MIN : in->zero_point;
    const int32_t top = clipped ? 0 : -in->top, bottom = in->height + (clipped ? 0 : in->bottom);
    const int32_t left = clipped ? 0 : -in->left, right = in->width + (clipped ? 0 : in->right);
    const int32_t columns = (out->width - 1) * l->stride_w + l->kernel_w;
    if (columns > LINE || l->low != INT8_MIN || l->high != INT8_MAX)
        return 0;
    /* Column 0 of the line is the first window's; from..end - 1 lie inside the input. */
    int8_t line[LINE];
    const int32_t from = left > -l->pad_left ? left + l->pad_left : 0;
    const int32_t end = right + l->pad_left < columns ? right + l->pad_left : columns;
    for (int32_t i = 0; i < columns; i++)
        line[i] = outside;
    const uint32_t kernel = l->kernel_w, stride = l->stride_w;
    const int8_t *plane = w->activations + ((int32_t)interior(in) + from - l->pad_left);
    for (uint32_t c = 0; c < out->channels; c++, plane += in->plane)
        for (uint32_t y = 0; y < out->height; y++) {
            const int32_t at = (int32_t)(y * l->stride_h) - l->pad_top, y_end = at + l->kernel_h;
            const int32_t y0 = at < top ? top : at, y1 = y_end > bottom ? bottom : y_end;
            const int whole = y0 == at && y1 == y_end;
            if (from < end)
                largest_in_columns(plane + y0 * (int32_t)in->pitch, in->pitch, y0 < y1 ? (uint32_t)(y1 - y0) : 0,
                                   whole ? INT8_MIN : outside, line + from, (uint32_t)(end - from));
            int8_t *const to = w->activations + interior(out) + c * out->plane + y * out->pitch;
            if (kernel == 2)
                largest_in_windows(line, stride, 2, to, out->width);
            else if (kernel == 3)
                largest_in_windows(line, stride, 3, to, out->width);
            else
                largest_in_windows(line, stride, kernel, to, out->width);
        }
    return 1;
}

/* A sum: the operand that is halved and the other one's scale to the common one, and the output's scale. */
typedef struct {
    int32_t zero_points[2];
    int32_t factor, right;
    usual_scale to_out;
    uint32_t lines, length, pitches[3]; /* of the operands and the output */
} addition;

#if ENTROPI_HOST_VECTORS

/* add_lines by parts of lines that are packed, so that vectors are full however short the lines are. */
static void add_packed(const addition *of, const int8_t *halved, const int8_t *other, int8_t *to)
{
    const addition s = *of;
    const uint32_t half = 1u << (s.right - 1), width = s.length < LINE ? s.length : LINE, most = LINE / width;
    const int32_t first = -s.zero_points[0] * (1 << (ADD_HEADROOM_BITS - 1));
    const int32_t second = -s.zero_points[1] * (1 << ADD_HEADROOM_BITS);
    for (uint32_t x = 0, columns; x < s.length; x += columns) {
        columns = s.length - x < width ? s.length - x : width;
        for (uint32_t y = 0, rows; y < s.lines; y += rows) {
            rows = s.lines - y < most ? s.lines - y : most;
            int8_t a[LINE], b[LINE], sums[LINE];
            for (uint32_t i = 0; i < rows; i++) {
                copy_bytes(a + i * columns, halved + (y + i) * s.pitches[0] + x, columns);
                copy_bytes(b + i * columns, other + (y + i) * s.pitches[1] + x, columns);
            }
            for (uint32_t i = 0; i < rows * columns; i++) {
                const int32_t scaled = second + b[i] * (1 << ADD_HEADROOM_BITS);
                const int32_t sum = first + a[i] * (1 << (ADD_HEADROOM_BITS - 1)) +
                                    divide_rounded(add_high(scaled, scaled, s.factor), half, s.right);
                sums[i] = usual_output(sum, &s.to_out);
            }
            for (uint32_t i = 0; i < rows; i++)
                copy_bytes(to + (y + i) * s.pitches[2] + x, sums + i * columns, columns);
        }
    }
}

#endif

NOT_INLINED void add_lines(const addition *s, const int8_t *halved, const int8_t *other, int8_t *to)
{
    const int32_t factor = s->factor, right = s->right;
    const usual_scale to_out = s->to_out;
    int32_t first = -s->zero_points[0] * (1 << (ADD_HEADROOM_BITS - 1));
    int32_t second = -s->zero_points[1] * (1 << ADD_HEADROOM_BITS);
    OWN_REGISTER(first) /* not to become the zero points again, for which there is one instruction more */
    OWN_REGISTER(second)
    const uint32_t half = 1u << (right - 1);
    for (uint32_t lines = s->lines; lines; lines--) {
        for (const int8_t *end = to + s->length; to != end;) {
            const int32_t a = first + *halved++ * (1 << (ADD_HEADROOM_BITS - 1));
            const int32_t b = second + *other++ * (1 << ADD_HEADROOM_BITS);
            const int32_t sum = a + divide_rounded(add_high(b, b, factor), half, right);
            *to++ = usual_output(sum, &to_out);
        }
        halved += s->pitches[0] - s->length, other += s->pitches[1] - s->length, to += s->pitches[2] - s->length;
    }
}

#if ENTROPI_HOST_VECTORS
#define ADD_LINES(s, halved, other, to) ((s)->length < 4 ? add_lines : add_packed)(s, halved, other, to)
#else
#define ADD_LINES add_lines
#endif

static int is_one_half(const uint8_t *scale) { return load_i32(scale) == 1 << 30 && load_i32(scale + 4) == 0; }

/* ADD of two tensors of one size, the scale of one of which is one half. */
int run_usual_add(const work *w)
{
    const layer *l = &w->layer;
    const tensor *a = &w->in, *b = &w->second, *out = &w->out;
    const uint8_t *const scales = w->image + l->parameters_at;
    const int swapped = !is_one_half(scales);
    const row_scale scale = scale_at(swapped ? scales : scales + 8), to_out = scale_at(scales + 16);
    const range outputs = range_of(l, out);
    const tensor *const first = swapped ? b : a, *const second = swapped ? a : b;
    if (!same_size(a, out) || !same_size(b, out) || !is_one_half(scales + 8 * swapped) ||
        scale.multiplier < 1 << 30 || scale.shift >= 0 || !is_usual(&to_out, &outputs))
        return 0;
    const layout all = plan_lines(a, b, out);
    const addition s = {
        .zero_points = {first->zero_point, second->zero_point},
        .factor = usual_factor(&scale),
        .right = -scale.shift,
        .to_out = usual_of(&to_out, &outputs),
        .lines = all.lines,
        .length = all.length,
        .pitches = {first->pitch, second->pitch, out->pitch},
    };
    const int8_t *halved = w->activations + interior(first), *other = w->activations + interior(second);
    int8_t *to = w->activations + interior(out);
    for (uint32_t c = 0; c < all.planes; c++, halved += first->plane, other += second->plane, to += out->plane)
        ADD_LINES(&s, halved, other, to);
    return 1;
}
#endif
