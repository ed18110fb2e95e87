"""How often wrong, how much lost: hostile files, kills, faults and fuzzing, as one table."""
