/* One layer of the network: its kernel, then the border of what it has put out. */
#include "internal.h"
#include "mve.h"

#if ENTROPI_MVE

static void fill(int8_t *p, int8_t value, uint32_t count)
{
    for (int32_t left = (int32_t)count; left > 0; left -= 16, p += 16)
        vstrbq_p_s8(p, vdupq_n_s8(value), vctp8q((uint32_t)left));
}

#else

static void fill(int8s *p, int8_t value, uint32_t count)
{
    int8s one;
    narrow(in_all(value), &one);
    const int8s four[] = {one, one, one, one};
    for (; count >= 4; count -= 4, p += 4)
        copy_bytes((int8_t *)p, (const int8_t *)four, sizeof four);
    while (count--)
        *p++ = one;
}

#endif

/* What lies before the first value, between rows, between planes, and behind the last value. */
void fill_border(const tensor *t, int8s *activations)
{
    if (t->plane == (uint32_t)t->height * t->width)
        return;
    const uint32_t before = t->top * t->pitch + t->left, gap = t->pitch - t->width;
    const uint32_t behind = t->plane - before - (t->height - 1u) * t->pitch - t->width;
    int8s *p = activations + t->offset;
    fill(p, t->zero_point, before);
    p += before;
    for (uint32_t c = t->channels; c; c--) {
        for (uint32_t y = t->height; --y; p += gap) {
            p += t->width;
            fill(p, t->zero_point, gap);
        }
        p += t->width;
        const uint32_t last = c > 1 ? behind + before : behind;
        fill(p, t->zero_point, last);
        p += last;
    }
}

void run_layer(const image_header *header, uint32_t index, work *w)
{
    w->layer = read_layer(w->image, header, index);
    w->in = read_tensor(w->image, header, w->layer.input);
    w->out = read_tensor(w->image, header, w->layer.output);
    if (has_two_operands(&w->layer))
        w->second = read_tensor(w->image, header, w->layer.second);
    layer_kernels[KERNEL_OF(w->layer.kind, w->layer.encoding)](w);
    fill_border(&w->out, w->activations); /* last: an output may lie over an input of its layer, border over values */
}
