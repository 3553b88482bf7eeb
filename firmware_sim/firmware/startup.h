/* The stack, as startup.c laid and painted it. */
#ifndef ENTROPI_STARTUP_H
#define ENTROPI_STARTUP_H

#include <stdint.h>

/* Bytes of RAM that the stack may take. */
uint32_t startup_stack_bytes(void);

/* The most bytes it has taken since reset. */
uint32_t startup_stack_used(void);

#endif
