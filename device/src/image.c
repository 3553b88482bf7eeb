/* Reading and validating an image. All checks stand here; the kernels carry none. */
#include "rows.h"

image_header read_header(const uint8_t *image)
{
    return (image_header){
        .length = load_u32(image + 8),
        .tensors = load_u16(image + 12),
        .layers = load_u16(image + 14),
        .input = load_u16(image + 16),
        .output = load_u16(image + 18),
        .activation_bytes = load_u32(image + 20),
        .features = load_u32(image + 24),
        .input_scale = load_f32(image + 28),
        .feature_gain = load_f32(image + 32),
        .centers_at = load_u32(image + 36),
        .scales_at = load_u32(image + 40),
        .tensors_at = load_u32(image + 44),
        .layers_at = load_u32(image + 48),
        .input_zero_point = (int8_t)image[52],
    };
}

tensor read_tensor(const uint8_t *image, const image_header *header, uint32_t index)
{
    const uint8_t *p = image + header->tensors_at + index * TENSOR_BYTES;
    tensor t = {
        .offset = load_u32(p),
        .channels = load_u16(p + 4),
        .height = load_u16(p + 6),
        .width = load_u16(p + 8),
        .top = p[10],
        .left = p[11],
        .bottom = p[12],
        .right = p[13],
        .zero_point = (int8_t)p[14],
    };
    t.pitch = (uint32_t)t.left + t.width + t.right;
    t.plane = t.pitch * ((uint32_t)t.top + t.height + t.bottom);
    return t;
}

layer read_layer(const uint8_t *image, const image_header *header, uint32_t index)
{
    const uint8_t *p = image + header->layers_at + index * LAYER_BYTES;
    return (layer){
        .kind = p[0],
        .encoding = p[1],
        .input = load_u16(p + 2),
        .second = load_u16(p + 4),
        .output = load_u16(p + 6),
        .kernel_h = p[8],
        .kernel_w = p[9],
        .stride_h = p[10],
        .stride_w = p[11],
        .pad_top = p[12],
        .pad_left = p[13],
        .dilation_h = p[14],
        .dilation_w = p[15],
        .groups = load_u16(p + 16),
        .low = (int8_t)p[18],
        .high = (int8_t)p[19],
        .parameters_at = load_u32(p + 20),
        .weights_at = load_u32(p + 24),
        .weights_length = load_u32(p + 28),
        .scratch_at = load_u32(p + 32),
    };
}

/* [at, at + length) lies between the header and the CRC */
static int inside(const image_header *header, uint32_t at, uint64_t length)
{
    return at >= HEADER_BYTES && at + length <= (uint64_t)header->length - CRC_BYTES;
}

static int tensor_fits(const image_header *header, const tensor *t)
{
    const uint64_t plane = (uint64_t)t->pitch * ((uint32_t)t->top + t->height + t->bottom);
    return t->channels && t->height && t->width && plane <= header->activation_bytes &&
           t->offset + t->channels * plane <= header->activation_bytes;
}

/* Along one axis: from the window's first value to its last, both included. */
static uint32_t extent(uint8_t kernel, uint8_t dilation) { return (kernel - 1u) * dilation + 1u; }

/* Whether the tensor ends before `from` or begins at `end` or behind it. */
static int is_outside(const tensor *t, uint64_t from, uint64_t end)
{
    return t->offset + (uint64_t)t->channels * t->plane <= from || t->offset >= end;
}

/* A layer's scratch lies inside the activation bytes, apart from what the layer reads and writes. */
static int scratch_fits(const image_header *header, const layer *l, const tensor *in, const tensor *out, uint32_t words)
{
    const uint64_t from = l->scratch_at, end = from + 4ull * words;
    return from % 4u == 0 && end <= header->activation_bytes && is_outside(in, from, end) && is_outside(out, from, end);
}

static int steps_fit(const layer *l)
{
    return l->kernel_h && l->kernel_w && l->stride_h && l->stride_w && l->dilation_h && l->dilation_w;
}

/* What a convolution reads, from the first window's first column to the last one's last, lies inside the activation
 * bytes, and in one window inside the offsets that packed weights hold. */
static int reads_fit(const image_header *header, const layer *l, const tensor *in, const tensor *out)
{
    const uint32_t across = (out->width - 1u) * l->stride_w + extent(l->kernel_w, l->dilation_w);
    const uint32_t inside = (uint32_t)l->pad_left + in->width + in->right;
    const uint32_t before = l->pad_left > in->left ? (uint32_t)(l->pad_left - in->left) : 0;
    const uint32_t behind = across > inside ? across - inside : 0;
    const uint64_t end = in->offset + (uint64_t)in->channels * in->plane;
    const uint64_t window = (uint64_t)(in->channels - 1u) * in->plane +
                            (uint64_t)(extent(l->kernel_h, l->dilation_h) - 1u) * in->pitch +
                            extent(l->kernel_w, l->dilation_w);
    return before <= in->offset && end + behind <= header->activation_bytes && window <= 1u << 24;
}

/* Along one axis: every window, cut off at the edges, holds a value. */
static int meets(uint32_t size, uint32_t outputs, uint8_t kernel, uint8_t stride, uint8_t pad)
{
    return stride && pad < kernel && (outputs - 1u) * stride < size + pad;
}

static int pool_fits(const layer *l, const tensor *in, const tensor *out)
{
    if (in->channels != out->channels)
        return 0;
    if (l->encoding == WINDOW_CLIPPED)
        return meets(in->height, out->height, l->kernel_h, l->stride_h, l->pad_top) &&
               meets(in->width, out->width, l->kernel_w, l->stride_w, l->pad_left);
    return l->encoding == WINDOW_PADDED && steps_fit(l);
}

static int scale_fits(int32_t multiplier, int shift) { return multiplier >= 0 && shift >= -31 && shift <= 30; }

/* The sums of a row, |bias| + 128 * magnitude at most, are what requantise can take with the row's shift. */
static int sum_fits(const row_scale *s, uint64_t magnitude)
{
    const int64_t half = s->shift < 0 ? (int64_t)1 << (-s->shift - 1) : 0;
    return (s->bias < 0 ? -(int64_t)s->bias : s->bias) + (int64_t)(magnitude * 128u) + half <= INT32_MAX;
}

static uint32_t magnitude(int8_t w) { return (uint32_t)(w < 0 ? -w : w); }

/* The scales of a layer's rows, with how many of their bytes are left. */
typedef struct {
    scale_reader reader;
    uint32_t left;
} scale_check;

static int start_scales(const uint8_t *image, const image_header *header, const layer *l, scale_check *scales)
{
    if (!inside(header, l->parameters_at, SCALES_HEADER))
        return 0;
    const uint8_t *p = image + l->parameters_at;
    const uint32_t bias_bytes = p[1], shift_bits = p[2];
    if (bias_bytes < 1 || bias_bytes > 4 || shift_bits > SHIFT_BYTE)
        return 0;
    scales->reader = open_scales(p);
    scales->left = header->length - CRC_BYTES - SCALES_HEADER - l->parameters_at;
    return 1;
}

static int row_fits(scale_check *scales, uint64_t magnitude)
{
    if (scales->left < scales->reader.bytes)
        return 0;
    scales->left -= scales->reader.bytes;
    const row_scale s = read_scale(&scales->reader);
    return scale_fits(s.multiplier, s.shift) && sum_fits(&s, magnitude);
}

static int constant_fits(scale_check *scales)
{
    if (!scales->left)
        return 0;
    scales->left--, scales->reader.at++;
    return 1;
}

/* The next entry begins in the weights and is none that the kernels cannot read. A code may be loaded from bytes behind
 * the weights, but not behind the CRC. */
static int entry_fits(const entry_reader *r, int is_rice, const uint8_t *end, uint32_t value_bits)
{
    if (!is_rice) {
        const uint32_t sign = 1u << (value_bits - 1u);
        return end - r->at >= PAIR_BYTES && r->at[1] != 0 && (uint8_t)(r->at[0] + sign) < 2u * sign;
    }
    if (r->bit >> 3 >= (uint32_t)(end - r->at))
        return 0;
    const uint32_t window = code_window(r);
    return window && leading_zeros(window) + r->head + value_bits <= MOST_CODE_BITS;
}

/* Walk the entries as the kernels do. The list ends with an entry of value 0 right behind the last row, and the weights
 * end with that entry. Counts the weights that are not zero, and the entries of the longest row. */
static int entries_fit(const uint8_t *weights, uint32_t length, int is_rice, uint32_t rows, uint32_t row_length,
                       scale_check *scales, uint32_t *stored, uint32_t *longest)
{
    const uint8_t *end = weights + length;
    const uint32_t value_bits = length < FORM_BYTES ? 0 : weights[1];
    if (value_bits < LEAST_VALUE_BITS || value_bits > MOST_VALUE_BITS || weights[0] + 1u + value_bits > MOST_CODE_BITS)
        return 0;
    if (is_rice && length > INT32_MAX / 8)
        return 0;
    entry_reader r = open_entries(weights, is_rice);
    if (!entry_fits(&r, is_rice, end, value_bits))
        return 0;
    read_entry(&r, is_rice);
    for (uint32_t row = 0; row < rows; row++, r.next -= row_length) {
        uint32_t count = 0;
        uint64_t total = 0;
        for (; r.next < row_length; read_entry(&r, is_rice)) {
            total += magnitude((int8_t)r.value);
            *stored += r.value != 0;
            count++;
            if (!entry_fits(&r, is_rice, end, value_bits))
                return 0;
        }
        *longest = count > *longest ? count : *longest;
        if (!(count ? row_fits(scales, total) : constant_fits(scales)))
            return 0;
    }
    const uint32_t used = is_rice ? (r.bit + 7u) / 8u : (uint32_t)(r.at - weights);
    return r.next == 0 && r.value == 0 && used == length;
}

static int dense_fits(const int8_t *weights, uint32_t length, uint32_t rows, uint32_t row_length, scale_check *scales,
                      uint32_t *stored)
{
    if (length != (uint64_t)rows * row_length)
        return 0;
    for (uint32_t row = 0; row < rows; row++) {
        uint64_t total = 0;
        for (uint32_t i = 0; i < row_length; i++)
            total += magnitude(*weights++);
        if (!row_fits(scales, total))
            return 0;
    }
    *stored = length;
    return 1;
}

static int conv_fits(const uint8_t *image, const image_header *header, const layer *l, const tensor *in,
                     const tensor *out, uint32_t *stored)
{
    const uint32_t taps = (uint32_t)l->kernel_h * l->kernel_w, rows = out->channels, length = l->weights_length;
    if (!l->groups || in->channels % l->groups || rows % l->groups)
        return 0;
    const uint32_t row_length = in->channels / l->groups * taps;
    const uint8_t *weights = image + l->weights_at;
    scale_check scales;
    if (!steps_fit(l) || taps > MAX_TAPS || !reads_fit(header, l, in, out) ||
        !inside(header, l->weights_at, length) || !start_scales(image, header, l, &scales))
        return 0;
    if (l->encoding == WEIGHTS_DENSE)
        return dense_fits((const int8_t *)weights, length, rows, row_length, &scales, stored) &&
               scratch_fits(header, l, in, out, GATHERED_WORDS);
    uint32_t longest = 0;
    return l->encoding <= WEIGHTS_RICE &&
           entries_fit(weights, length, l->encoding == WEIGHTS_RICE, rows, row_length, &scales, stored, &longest) &&
           scratch_fits(header, l, in, out, row_words(taps, longest));
}

/* b has a's size or 1 along every axis */
static int spreads_over(const tensor *a, const tensor *b)
{
    return (b->channels == a->channels || b->channels == 1) && (b->height == a->height || b->height == 1) &&
           (b->width == a->width || b->width == 1);
}

/* `count` pairs of multiplier and shift, int32 each, as add and mean have them */
static int scales_fit(const uint8_t *image, const image_header *header, const layer *l, uint32_t count)
{
    if (!inside(header, l->parameters_at, 8u * count))
        return 0;
    for (const uint8_t *p = image + l->parameters_at; count--; p += 8)
        if (!scale_fits(load_i32(p), load_i32(p + 4)))
            return 0;
    return 1;
}

/* The exponentials are never negative, the first is not too small, and so few that their sum shifts by 31 at most. */
static int softmax_fits(const uint8_t *image, const image_header *header, const layer *l, uint32_t channels)
{
    if (channels > MAX_SOFTMAX || !inside(header, l->parameters_at, SOFTMAX_BYTES))
        return 0;
    const uint8_t *exponentials = image + l->parameters_at;
    for (uint32_t i = 0; i < SOFTMAX_BYTES; i += 4)
        if (load_i32(exponentials + i) < 0)
            return 0;
    return load_i32(exponentials) >= 1 << 12;
}

/* E_IMAGE unless every layer of a CRC-checked image stays inside its tensors, its weights and 32-bit sums. */
static entropi_status validate_layers(const uint8_t *image, const image_header *header, entropi_info *info)
{
    for (uint32_t i = 0; i < header->layers; i++) {
        const layer l = read_layer(image, header, i);
        if (l.input >= header->tensors || l.output >= header->tensors || l.low > l.high)
            return ENTROPI_E_IMAGE;
        const tensor in = read_tensor(image, header, l.input), out = read_tensor(image, header, l.output);
        uint32_t stored = 0;
        int fits = 0;
        if (l.kind == LAYER_CONV) {
            fits = conv_fits(image, header, &l, &in, &out, &stored);
        } else if (l.kind == LAYER_MAX_POOL || l.kind == LAYER_AVERAGE_POOL) {
            fits = pool_fits(&l, &in, &out);
        } else if (has_two_operands(&l) && l.second < header->tensors) {
            const tensor second = read_tensor(image, header, l.second);
            fits = same_size(&in, &out) && spreads_over(&out, &second) &&
                   scales_fit(image, header, &l, l.kind == LAYER_MUL ? 1 : 3);
        } else if (l.kind == LAYER_COPY) {
            fits = in.height == out.height && in.width == out.width && l.second + in.channels <= out.channels;
        } else if (l.kind == LAYER_SOFTMAX) {
            fits = same_size(&in, &out) && softmax_fits(image, header, &l, in.channels);
        } else if (l.kind == LAYER_TABLE) {
            fits = same_size(&in, &out) && inside(header, l.parameters_at, TABLE_BYTES);
        } else if (l.kind == LAYER_MEAN) {
            fits = in.channels == out.channels && out.height == 1 && out.width == 1 &&
                   (uint32_t)in.height * in.width < 1u << 21 && scales_fit(image, header, &l, 1);
        }
        if (!fits)
            return ENTROPI_E_IMAGE;
        const uint32_t kernel = kernel_of(&l, &in);
        if (!layer_kernels[kernel])
            return ENTROPI_E_KERNEL;
        info->kernels |= 1u << kernel;
        info->stored_weights += stored;
        info->macs += stored * out.height * out.width;
    }
    return ENTROPI_OK;
}

entropi_status entropi_describe(const void *image, size_t image_length, entropi_info *info)
{
    if (!image || !info)
        return ENTROPI_E_ARGUMENT;
    const uint8_t *p = image;
    if (image_length < HEADER_BYTES + CRC_BYTES || image_length > INT32_MAX || load_u32(p) != 0x52544E45u ||
        load_u32(p + 8) != image_length)
        return ENTROPI_E_IMAGE;
    if (load_u16(p + 4) != ENTROPI_IMAGE_VERSION)
        return ENTROPI_E_VERSION;
    if (entropi_crc32(0, p, image_length - CRC_BYTES) != load_u32(p + image_length - CRC_BYTES))
        return ENTROPI_E_IMAGE;

    const image_header h = read_header(p);
    if (h.input >= h.tensors || h.output >= h.tensors || h.features == 0 || h.activation_bytes > INT32_MAX ||
        !inside(&h, h.centers_at, h.features) || !inside(&h, h.scales_at, h.features) ||
        !inside(&h, h.tensors_at, (uint64_t)h.tensors * TENSOR_BYTES) ||
        !inside(&h, h.layers_at, (uint64_t)h.layers * LAYER_BYTES) || !(h.feature_gain > 0.0f) ||
        !(h.feature_gain < 1e9f) || !(h.input_scale > 0.0f))
        return ENTROPI_E_IMAGE;
    for (uint32_t i = 0; i < h.tensors; i++) {
        const tensor t = read_tensor(p, &h, i);
        if (!tensor_fits(&h, &t))
            return ENTROPI_E_IMAGE;
    }
    const tensor in = read_tensor(p, &h, h.input), out = read_tensor(p, &h, h.output);
    if ((uint64_t)out.channels * out.height * out.width != h.features || in.zero_point != h.input_zero_point)
        return ENTROPI_E_IMAGE;

    *info = (entropi_info){
        .features = h.features,
        .channels = in.channels,
        .height = in.height,
        .width = in.width,
        .layers = h.layers,
        .input_scale = h.input_scale,
        .input_zero_point = h.input_zero_point,
    };
    return validate_layers(p, &h, info);
}
