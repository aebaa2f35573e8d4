// Swagger UI over this server's own description; deferred after the bundle, which defines the function.
window.SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null, // would send the description to another host
});
