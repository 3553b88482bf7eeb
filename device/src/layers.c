/* Pooling and elementwise layers, each after the TFLM operator it names. */
#include "internal.h"

/* Channel by channel: an output may lie over an input, each of its channels before the input's of the same number. */
SPECIALISE void pool(const layer *l, const tensor *in, const tensor *out, int8_t *activations, int average)
{
    const int clipped = l->encoding == WINDOW_CLIPPED;
    const int32_t top = clipped ? 0 : -in->top, bottom = in->height + (clipped ? 0 : in->bottom);
    const int32_t left = clipped ? 0 : -in->left, right = in->width + (clipped ? 0 : in->right);
    const int32_t whole = l->kernel_h * l->kernel_w, pitch = (int32_t)in->pitch;
    const int8_t *plane = activations + interior(in);
    for (uint32_t c = 0; c < out->channels; c++, plane += in->plane)
        for (uint32_t y = 0; y < out->height; y++) {
            const int32_t y_at = (int32_t)(y * l->stride_h) - l->pad_top, y_end = y_at + l->kernel_h;
            const int32_t y0 = y_at < top ? top : y_at, y1 = y_end > bottom ? bottom : y_end;
            int8_t *to = activations + interior(out) + c * out->plane + y * out->pitch;
            int32_t x_at = -l->pad_left;
            for (const int8_t *last = to + out->width; to != last; x_at += l->stride_w) {
                const int32_t x_end = x_at + l->kernel_w;
                const int32_t x0 = x_at < left ? left : x_at, x1 = x_end > right ? right : x_end;
                const int32_t inside = y0 < y1 && x0 < x1 ? (y1 - y0) * (x1 - x0) : 0;
                const int32_t outside = clipped ? 0 : whole - inside;
                int32_t value = average ? outside * in->zero_point : outside ? in->zero_point : -128;
                const int8_t *line = plane + y0 * pitch + x0;
                for (int32_t rows = inside ? y1 - y0 : 0; rows--; line += pitch)
                    for (const int8_t *from = line, *end = line + (x1 - x0); from != end; from++)
                        value = average ? value + *from : *from > value ? *from : value;
                if (average) {
                    const int32_t count = clipped ? inside : whole;
                    value = (value + (value > 0 ? count / 2 : -(count / 2))) / count;
                }
                *to++ = clamp_i8(value, l->low, l->high);
            }
        }
}

static void max_pool(const layer *l, const tensor *in, const tensor *out, int8_t *activations)
{
    pool(l, in, out, activations, 0);
}

static void average_pool(const layer *l, const tensor *in, const tensor *out, int8_t *activations)
{
    pool(l, in, out, activations, 1);
}

/* MAX_POOL_2D and AVERAGE_POOL_2D. Padding takes part as the zero point, as after an explicit PAD, be it in a border or
 * beyond it, or, where the windows are clipped, not at all. */
void run_pool(const layer *l, const tensor *in, const tensor *out, int8_t *activations)
{
    (l->kind == LAYER_MAX_POOL ? max_pool : average_pool)(l, in, out, activations);
}

/* The second operand of an elementwise layer, spread over the axes along which it has one value. */
typedef struct {
    const int8_t *values;
    uint32_t plane, pitch, step;
} operand;

static operand spread(const tensor *t, const int8_t *activations)
{
    return (operand){
        .values = activations + interior(t),
        .plane = t->channels == 1 ? 0 : t->plane,
        .pitch = t->height == 1 ? 0 : t->pitch,
        .step = t->width == 1 ? 0 : 1,
    };
}

/* An output may lie over an input, as close before it as the plan allows: the elementwise kernels therefore go from the
 * first address to the last, and read a value before they write the one that may replace it. */

/* ADD and SUB: both inputs are brought to a common scale with ADD_HEADROOM_BITS more bits. */
void run_add(const uint8_t *image, const layer *l, const tensor *a, const tensor *b, const tensor *out,
             int8_t *activations)
{
    const uint8_t *p = image + l->parameters_at;
    const int32_t multiplier_a = load_i32(p), shift_a = load_i32(p + 4);
    const int32_t multiplier_b = load_i32(p + 8), shift_b = load_i32(p + 12);
    const int32_t multiplier_out = load_i32(p + 16), shift_out = load_i32(p + 20);
    const int32_t zero_a = a->zero_point, zero_b = b->zero_point, zero_out = out->zero_point;
    const int32_t low = l->low, high = l->high;
    const uint32_t flip = l->kind == LAYER_SUB ? UINT32_MAX : 0; /* x ^ flip - flip is x or -x */
    const operand second = spread(b, activations);
    for (uint32_t c = 0; c < out->channels; c++)
        for (uint32_t y = 0; y < out->height; y++) {
            const int8_t *pa = activations + interior(a) + c * a->plane + y * a->pitch;
            const int8_t *pb = second.values + c * second.plane + y * second.pitch;
            int8_t *to = activations + interior(out) + c * out->plane + y * out->pitch;
            for (const int8_t *end = to + out->width; to != end; pb += second.step) {
                const int32_t va = (*pa++ - zero_a) * (1 << ADD_HEADROOM_BITS);
                const int32_t vb = (*pb - zero_b) * (1 << ADD_HEADROOM_BITS);
                /* Unsigned: a hostile image may make these sums wrap. */
                const uint32_t scaled_a = (uint32_t)requantise(va, multiplier_a, shift_a);
                const uint32_t scaled_b = (uint32_t)requantise(vb, multiplier_b, shift_b);
                const int32_t sum = (int32_t)(scaled_a + (scaled_b ^ flip) - flip);
                const int32_t scaled = requantise(sum, multiplier_out, shift_out);
                *to++ = clamp_i8((int32_t)((uint32_t)scaled + (uint32_t)zero_out), low, high);
            }
        }
}

/* MUL */
void run_mul(const uint8_t *image, const layer *l, const tensor *a, const tensor *b, const tensor *out,
             int8_t *activations)
{
    const int32_t multiplier = load_i32(image + l->parameters_at), shift = load_i32(image + l->parameters_at + 4);
    const operand second = spread(b, activations);
    for (uint32_t c = 0; c < out->channels; c++)
        for (uint32_t y = 0; y < out->height; y++) {
            const int8_t *pa = activations + interior(a) + c * a->plane + y * a->pitch;
            const int8_t *pb = second.values + c * second.plane + y * second.pitch;
            int8_t *to = activations + interior(out) + c * out->plane + y * out->pitch;
            for (const int8_t *end = to + out->width; to != end; pb += second.step) {
                const int32_t product = (*pa++ - a->zero_point) * (*pb - b->zero_point);
                const int32_t scaled = requantise(product, multiplier, shift);
                *to++ = clamp_i8((int32_t)((uint32_t)scaled + (uint32_t)out->zero_point), l->low, l->high);
            }
        }
}

/* Every operator of one int8 input alone, as the table of what it makes of -128, -127, ... 127. */
void run_table(const uint8_t *image, const layer *l, const tensor *in, const tensor *out, int8_t *activations)
{
    const int8_t *table = (const int8_t *)image + l->parameters_at + 128;
    for (uint32_t c = 0; c < out->channels; c++)
        for (uint32_t y = 0; y < out->height; y++) {
            const int8_t *from = activations + interior(in) + c * in->plane + y * in->pitch;
            int8_t *to = activations + interior(out) + c * out->plane + y * out->pitch;
            for (const int8_t *end = to + out->width; to != end;)
                *to++ = table[*from++];
        }
}

/* One input of CONCATENATION, from channel `second` of the output on. The plan may have put it there already. */
void run_copy(const layer *l, const tensor *in, const tensor *out, int8_t *activations)
{
    if (interior(in) == interior(out) + l->second * out->plane && in->pitch == out->pitch && in->plane == out->plane)
        return;
    for (uint32_t c = 0; c < in->channels; c++)
        for (uint32_t y = 0; y < out->height; y++) {
            const int8_t *from = activations + interior(in) + c * in->plane + y * in->pitch;
            int8_t *to = activations + interior(out) + (l->second + c) * out->plane + y * out->pitch;
            for (const int8_t *end = to + out->width; to != end;)
                *to++ = *from++;
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
