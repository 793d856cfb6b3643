/* The family prepare_moe_input. */
#ifndef PREPARE_MOE_INPUT_H
#define PREPARE_MOE_INPUT_H

#include "moe_align.h"

#endif
