// Found in place of the toolkit's header.
#pragma once

#include "intrinsics.h"
