"""Write a trained model for other tools."""
