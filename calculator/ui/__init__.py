"""The dashboard: Streamlit pages over the functions of the package."""
