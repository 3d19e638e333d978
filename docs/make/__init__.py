"""What is made while the pages are built: pictures, live pages of attention, tables of options."""
