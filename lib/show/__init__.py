"""What people look at: figures, tables, the panel, boxes on images, curves of training logs.

Here belongs what turns records and arrays into pictures and tables of notebooks, commands and the report; not what
measures or judges them, nor what only the tours draw: that lies beside them (`notebooks/tours`).
"""
