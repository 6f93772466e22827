/* What a program that runs a network needs of the machine below it. */
#include <stdint.h>

int board_read(void *into, uint32_t bytes);         /* the next input; 0 when there are no more */
void board_write(const void *from, uint32_t bytes); /* a result */
void board_begin(void);                             /* a measurement begins: of time and stack */
void board_end(void);                               /* and ends: "ticks stack" is printed */
