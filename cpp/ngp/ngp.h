// The whole public interface.
#pragma once

#include <ngp/core/check.h>
#include <ngp/core/memory.h>
#include <ngp/core/parallel.h>
#include <ngp/testbed.h>
