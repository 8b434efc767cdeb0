"""Questions as data: made from reference masks, worded in many ways."""
