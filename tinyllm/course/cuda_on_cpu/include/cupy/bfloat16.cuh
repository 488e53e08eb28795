#pragma once
#include "float16.cuh"
