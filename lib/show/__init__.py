"""What people look at: figures, tables, the panel. No number is made here."""
