/* The family concat_mla_k. */
#ifndef CONCAT_MLA_K_H
#define CONCAT_MLA_K_H

#include "mla_concat.h"

#endif
