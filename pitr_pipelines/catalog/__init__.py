"""What exists and what can be restored: layout, records, the manifest."""
