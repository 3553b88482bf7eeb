/* What the firmware needs from a board: a byte stream and a clock. */
#ifndef ENTROPI_PORT_H
#define ENTROPI_PORT_H

#include <stdint.h>

void port_open(void);

/* Wait for exactly length bytes. Returns 0, or -1 when the stream has ended. */
int port_read(uint8_t *data, uint32_t length);

void port_write(const uint8_t *data, uint32_t length);

/* Executed instructions on the emulator; the debugger's clock elsewhere. */
uint64_t port_ticks(void);

/* End the session: 0 is success. Does not return. */
void port_exit(int status);

#endif
