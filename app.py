"""The dashboard: streamlit run app.py."""

from calculator.ui.page import main

main()
