// Included first in traced code: these functions access memory too, and tracing.cpp defines them.
#pragma redefine_extname memcpy traced_memcpy
#pragma redefine_extname memmove traced_memmove
#pragma redefine_extname memset traced_memset
