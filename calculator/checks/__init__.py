"""Recorded runs against today's predictions: validate, and with the extra `validation`, verify and trace."""
