"""What editors make: edits that can be applied, composed, run virtually, saved and exported, and their receipts."""
