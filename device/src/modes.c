/* The memory modes of a build, by bytes a parameter: all of them; of lines that are taken out, the linker leaves out the
 * code, and entropi_open refuses such heads. */
#include "head.h"

const memory_mode *const memory_modes[MODES] = {
    [MODE_OF(12)] = &gradient_and_momentum,
    [MODE_OF(8)] = &momentum_alone,
    [MODE_OF(4)] = &weights_alone,
    [MODE_OF(2)] = &short_weights,
};
