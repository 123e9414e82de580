"""What people look at: figures, tables, boxes on images, curves of training logs.

Here belongs what turns records and arrays into pictures and tables of notebooks, commands and the report; not what
measures or judges them, nor what one notebook alone draws: that lies beside it (`notebooks/tours`, `notebooks/stages`).
"""
