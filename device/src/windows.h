/* Which windows of a convolution reach beyond the border of its input. */
#ifndef ENTROPI_WINDOWS_H
#define ENTROPI_WINDOWS_H

#include <stdint.h>

/* The windows along one axis: which of their taps lie inside the input and its border. Distances count from the first
 * value of the first window. */
typedef struct {
    uint32_t stride, dilation, taps;
    uint32_t begin, end;            /* of the inside */
    uint32_t whole_from, whole_end; /* windows from..end - 1 lie inside */
} axis;

typedef struct {
    uint32_t from, end;
} span;

/* The windows of a layer along one axis. `before` and `after` are the border, `size` the map inside it. */
static inline axis along(uint32_t stride, uint32_t dilation, uint32_t taps, uint32_t pad, uint32_t before, uint32_t size,
                  uint32_t after, uint32_t outputs)
{
    const uint32_t extent = (taps - 1u) * dilation + 1u;
    axis a = {.stride = stride, .dilation = dilation, .taps = taps, .whole_end = outputs};
    a.begin = pad > before ? pad - before : 0;
    a.end = pad + size + after;
    while (a.whole_from < outputs && a.whole_from * stride < a.begin)
        a.whole_from++;
    while (a.whole_end > a.whole_from && (a.whole_end - 1u) * stride + extent > a.end)
        a.whole_end--;
    return a;
}

/* Which taps of a window lie inside. */
static inline span taps_inside(const axis *a, uint32_t window)
{
    const uint32_t at = window * a->stride;
    span s = {0, a->taps};
    while (s.from < a->taps && at + s.from * a->dilation < a->begin)
        s.from++;
    while (s.end > s.from && at + (s.end - 1u) * a->dilation >= a->end)
        s.end--;
    return s;
}

/* Windows from `window` to `window + count - 1` lie inside. */
static inline int are_inside(const axis *a, uint32_t window, uint32_t count)
{
    return window >= a->whole_from && window + count <= a->whole_end;
}

#endif
