/* What host and device code of this folder call things: the indices of the choices in its lists. */
#ifndef KDA_KINDS_H
#define KDA_KINDS_H
#define KDA_GATE_NONE 0 /* g is the activated decay already */
#define KDA_GATE_SOFTPLUS 1
#define KDA_GATE_BOUNDED 2
#define KDA_DECAY_CHANNEL 0 /* KDA: a decay for each channel of the key */
#define KDA_DECAY_SCALAR 1  /* GDN: one for a head */
#define KDA_LAYOUT_KV 0     /* a head's state is k rows of v */
#define KDA_LAYOUT_VK 1     /* v rows of k */
#endif
