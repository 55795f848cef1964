"""Many edits from one manifest, on one machine or many, and the field's benchmark among them."""
