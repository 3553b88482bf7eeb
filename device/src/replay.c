/* Samples kept to be learned again: a reservoir that keeps the classes even, as Chrysakis and Moens fill theirs
 * ("Online Continual Learning from Imbalanced Data", ICML 2020). A full one gives up a sample of the class it holds most
 * of. A class that holds most itself keeps each of the samples it has seen with the same probability. */
#include "head.h"

typedef struct {
    uint32_t *drawn; /* random numbers so far */
    uint32_t *count; /* samples held */
    uint32_t *seen;  /* of each class, learned so far */
    uint16_t *held;  /* of each class */
    uint16_t *labels;
    int8_t *samples; /* [replay][features] */
} reservoir;

static reservoir locate(const entropi *self)
{
    uint32_t *words = (uint32_t *)(void *)(self->arena + self->replay_at), *seen = words + 2;
    uint16_t *held = (uint16_t *)(seen + self->head.classes), *labels = held + self->head.classes;
    return (reservoir){words, words + 1, seen, held, labels, (int8_t *)(labels + self->head.replay)};
}

/* A random number below `limit`. */
static uint32_t draw(const entropi *self, const reservoir *r, uint32_t limit)
{
    return (uint32_t)((uint64_t)mix(mix(self->head.seed) + ++*r->drawn) * limit >> 32);
}

int8_t *keep_sample(const entropi *self, uint16_t label)
{
    if (!self->head.replay)
        return NULL;
    const reservoir r = locate(self);
    uint32_t at = *r.count;
    r.seen[label] += r.seen[label] < UINT32_MAX;
    if (at < self->head.replay) {
        ++*r.count;
    } else {
        uint16_t most = label;
        for (uint16_t c = 0; c < self->head.classes; c++)
            if (r.held[c] > r.held[most])
                most = c;
        uint32_t number = draw(self, &r, most == label ? r.seen[label] : r.held[most]);
        if (number >= r.held[most])
            return NULL;
        for (at = 0; r.labels[at] != most || number; at++)
            number -= r.labels[at] == most;
        r.held[most]--;
    }
    r.held[label]++;
    r.labels[at] = label;
    return r.samples + at * self->features;
}

const int8_t *draw_sample(const entropi *self, uint16_t *label)
{
    if (!self->head.replay)
        return NULL;
    const reservoir r = locate(self);
    if (!*r.count)
        return NULL;
    const uint32_t at = draw(self, &r, *r.count);
    *label = r.labels[at];
    return r.samples + at * self->features;
}
