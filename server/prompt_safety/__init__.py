"""What texts of clients may hold before a language model reads them."""
