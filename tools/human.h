/* Numbers as people like to read them. */
#ifndef TOOLS_HUMAN_H
#define TOOLS_HUMAN_H

#include <stdint.h>

#define HUMAN_BYTES 32

void human_time(double us, char text[HUMAN_BYTES]);            /* "1.21 ms" */
void human_size(int64_t bytes, char text[HUMAN_BYTES]);        /* "14.2 KiB" */
void human_date(int64_t unix_seconds, char text[HUMAN_BYTES]); /* local time; "-" for 0 */

#endif
