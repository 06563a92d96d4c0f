// Bulk copies and products of the asynchronous engines.

#include "runtime.h"

namespace emu {

bool deliver_bulk(Block&) { return false; }
bool deliver_product(Block&) { return false; }
void check_bulk_ended(Block&) {}
void check_products_ended(Block&) {}

}  // namespace emu
